#!lua flags=no-writes
-- Counts the instances at one moment of the server's clock.
--
-- KEYS  1 active  2 recently lost  3 suspects  4 partition  5 leader  6 external ones
-- ARGV  1 how many expired ids to name  2 how long an instance counts as recently lost, in ms
-- Returns {now in ms, active, expired and not swept, recently lost, {expired ids, oldest first},
--       active ones that are suspect, is a partition noted, leader, active external ones, expired
--       external ones}. All counts but the last two are without external ones; the ids are with them,
--       behind the others.
-- Cost  O(log n + ids named), and that of `suspects.lua`; where ids are named, O(expired external ones) more.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local outside = redis.call('ZCOUNT', KEYS[6], '-inf', now)
local expired = redis.call('ZCOUNT', KEYS[1], '-inf', now) - outside
local most, ids = tonumber(ARGV[1]), {}
if expired + outside > 0 and most > 0 then
  -- Whoever makes up many must not keep the others from being found.
  local others = {}
  -- At most 1,000 are external.
  local late = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most + outside)
  local external = outside > 0 and #late > 0 and redis.call('ZMSCORE', KEYS[6], unpack(late)) or {}
  for i, id in ipairs(late) do
    local into = external[i] and others or ids
    if #into < most then into[#into + 1] = id end
  end
  for at = 1, most - #ids do ids[#ids + 1] = others[at] end
end
local suspect = count_suspects(KEYS[3], KEYS[1], KEYS[6], now)
local leads = redis.call('HMGET', KEYS[5], 'id', 'until')
local leader = leads[1]
if leader and (tonumber(leads[2] or 0) <= now
  or tonumber(redis.call('ZSCORE', KEYS[1], leader) or 0) <= now) then
  leader = false
end
local external = redis.call('ZCARD', KEYS[6]) - outside
return {
  now,
  math.max(redis.call('ZCARD', KEYS[1]) - expired - outside - external, 0),
  math.max(expired, 0),
  -- What lies further ahead is from before the clock went back.
  redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now - ARGV[2]),
    string.format('%.0f', now + ARGV[2])),
  ids,
  suspect,
  redis.call('EXISTS', KEYS[4]),
  leader,
  external,
  outside,
}
