#!lua flags=no-writes
-- Counts the instances at one moment of the server's clock.
--
-- KEYS  1 active  2 recently lost
-- ARGV  1 how many expired ids to name  2 how long an instance counts as recently lost, in ms
-- Returns {now in ms, active, expired and not swept, recently lost, {expired ids, oldest first}}.
-- Cost  O(log n + ids named).
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expired = redis.call('ZCOUNT', KEYS[1], '-inf', now)
local ids = {}
if expired > 0 and tonumber(ARGV[1]) > 0 then
  ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
end
return {
  now,
  redis.call('ZCARD', KEYS[1]) - expired,
  expired,
  redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now - ARGV[2]), '+inf'),
  ids,
}
