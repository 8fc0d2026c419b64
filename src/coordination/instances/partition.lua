#!lua flags=allow-oom
-- Detects that fewer than half of the known instances are healthy, and that more than 70 % are again:
-- each once, in one step with its fact. External ones are not counted: anyone may make some up.
--
-- KEYS  1 active  2 recently lost  3 suspects  4 partition  5 broadcast  6 external ones
-- ARGV  1 how long an instance counts as recently lost, in ms
-- Returns {is there a partition, was there one before, healthy, total}.
-- Cost  O(log n), and that of `suspects.lua`. Passes when memory is full: one fact for each change.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local after = '(' .. string.format('%.0f', now)
local healthy = redis.call('ZCOUNT', KEYS[1], after, '+inf') - redis.call('ZCOUNT', KEYS[6], after, '+inf')
healthy = math.max(healthy - count_suspects(KEYS[3], KEYS[1], KEYS[6], now), 0)
-- What lies further ahead is from before the clock went back.
local total = redis.call('ZCARD', KEYS[1]) - redis.call('ZCARD', KEYS[6])
  + redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now - ARGV[1]),
    string.format('%.0f', now + ARGV[1]))

local was = redis.call('EXISTS', KEYS[4])
local is = was
local function tell(kind)
  redis.call('XADD', KEYS[5], '*', 'type', kind, 'time', now, 'data',
    cmsgpack.pack({healthy = healthy, total = total}))
end
if was == 0 and 2 * healthy < total then
  is = 1
  redis.call('HSET', KEYS[4], 'since', now, 'healthy', healthy, 'total', total)
  tell('partition.detected')
elseif was == 1 and 10 * healthy > 7 * total then
  is = 0
  redis.call('DEL', KEYS[4])
  tell('partition.healed')
end
return {is, was, healthy, total}
