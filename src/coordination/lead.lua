#!lua flags=allow-oom
-- Takes the lead if nobody has it, in one step with the fact, or renews it for who has it already.
--
-- KEYS  1 leader  2 active  3 hash of the instance that calls  4 broadcast  5 the version of the state
-- ARGV  1 id  2 incarnation  3 the highest term that the process has seen, or 0
-- Returns {term, ms that it leads from now on, leader}. Term 0: it does not lead; the leader is the
--       one who does, if anyone.
-- Cost  O(log n). Called again it changes nothing but the end of the lead. Passes when memory is
--       full: what grows is one fact for each election.
--
-- The lead ends with the pulse that it was renewed with: at that pulse's expiry. Whoever is not
-- active any more does not lead either, however long its lead would have lasted.
local id, incarnation = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function expiry(instance)
  return tonumber(redis.call('ZSCORE', KEYS[2], instance) or 0)
end

local is = redis.call('HMGET', KEYS[1], 'id', 'incarnation', 'term', 'until')
local leader = is[1]
if leader and (tonumber(is[4] or 0) <= now or expiry(leader) <= now) then leader = false end

local expires = expiry(id)
local me = redis.call('HMGET', KEYS[3], 'status', 'incarnation')
if me[1] ~= 'active' or me[2] ~= incarnation or expires <= now then return {'0', 0, leader} end
if leader and leader ~= id then return {'0', 0, leader} end

local term = is[3]
if not leader or is[2] ~= incarnation then
  -- Microseconds outlive the hash, and the process knows its last one: after a FLUSHALL the term still
  -- rises, even where the clock stepped back.
  local micros = clock[1] * 1000000 + clock[2]
  term = string.format('%.0f', math.max(tonumber(term or 0) + 1, tonumber(ARGV[3]) + 1, micros))
  raise_version(KEYS[5], micros)
  redis.call('HSET', KEYS[1], 'id', id, 'incarnation', incarnation, 'term', term,
    'elected_at', now)
  redis.call('XADD', KEYS[4], '*', 'type', 'leader.elected', 'time', now, 'data',
    cmsgpack.pack({id = id, term = tonumber(term)}))
end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', expires))
return {term, expires - now, id}
