#!lua flags=allow-oom
-- Answers the version of the state. Where something of it changed by time alone since the last call, raises
-- it first: an instance expired, a suspicion or a loss lapsed, the lead or a ballot ended, a record lapsed.
-- So it does where the server is in another history of its data, which may lack the last changes.
--
-- KEYS  1 state  2 active  3 suspects  4 recently lost  5 recently lost external ones  6 leader
--       7 open ballots  8 kept ballots  9 batches
-- ARGV  1 how long an instance counts as recently lost, in ms  2 how long a completed batch is kept and
--       3 one that nobody goes on with, in ms  4 the history, or '' (not known)  5 the highest version that
--       the caller was ever answered
-- Returns the version. Called again it changes nothing.
-- Cost  O(log n). Passes when memory is full: it keeps three fields.
local state, active, suspects, lost, lost_external, leader, open, kept, batches = unpack(KEYS, 1, 9)
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)

local function count(key, from, to)
  return redis.call('ZCOUNT', key, from, to)
end
local function at(time)
  return string.format('%.0f', time)
end

local recently = tonumber(ARGV[1])
local after, until_now = '(' .. at(now), at(now)
local leads = redis.call('HMGET', leader, 'id', 'until')
if leads[1] and (tonumber(leads[2] or 0) <= now
  or tonumber(redis.call('ZSCORE', active, leads[1]) or 0) <= now) then
  leads[1] = false
end
local lapsed = table.concat({
  count(active, '-inf', until_now),
  count(suspects, after, '+inf'),
  count(lost, '(' .. at(now - recently), at(now + recently)),
  count(lost_external, '(' .. at(now - recently), at(now + recently)),
  count(open, after, '+inf'),
  count(kept, after, '+inf'),
  count(batches, '-inf', at(now - ARGV[2])),
  count(batches, '-inf', at(now - ARGV[3])),
  leads[1] or '',
}, ' ')
local version, told = version_of(state), tonumber(ARGV[5])
local before = redis.call('HMGET', state, 'lapsed', 'history')
local history, known = ARGV[4], before[2]
if history ~= '' and history ~= known then redis.call('HSET', state, 'history', history) end
local other = history ~= '' and known and history ~= known
if version == 0 or version < told or before[1] ~= lapsed or other then
  redis.call('HSET', state, 'lapsed', lapsed)
  return raise_version(state, math.max(micros, told + 1))
end
return at(version)
