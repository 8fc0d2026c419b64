#!lua flags=no-writes
-- Counts the instances at one moment of the server's clock.
--
-- KEYS  1 active  2 recently lost  3 suspects  4 partition  5 leader
-- ARGV  1 how many expired ids to name  2 how long an instance counts as recently lost, in ms
-- Returns {now in ms, active, expired and not swept, recently lost, {expired ids, oldest first},
--       active ones that are suspect, is a partition noted, leader}.
-- Cost  O(suspects * log n + ids named).
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local after = '(' .. string.format('%.0f', now)
local expired = redis.call('ZCOUNT', KEYS[1], '-inf', now)
local ids = {}
if expired > 0 and tonumber(ARGV[1]) > 0 then
  ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
end
local function alive(id)
  return tonumber(redis.call('ZSCORE', KEYS[1], id) or 0) > now
end
local suspect = 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], after, '+inf')) do
  if alive(id) then suspect = suspect + 1 end
end
local leads = redis.call('HMGET', KEYS[5], 'id', 'until')
local leader = leads[1]
if leader and (tonumber(leads[2] or 0) <= now or not alive(leader)) then leader = false end
return {
  now,
  redis.call('ZCARD', KEYS[1]) - expired,
  expired,
  redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now - ARGV[2]), '+inf'),
  ids,
  suspect,
  redis.call('EXISTS', KEYS[4]),
  leader,
}
