#!lua flags=allow-oom
-- Chooses the pattern in which a system event is answered, or takes the choice back, in one step with the fact.
--
-- KEYS  1 patterns  2 broadcast  3 the version of the state
-- ARGV  1 the event  2 the pattern, or '': whatever each instance's own setting says  3 who says so
--       4 the version that this replaces, or ''
-- Returns {done, version}. done 0: another version is there, nothing was changed. Called again with the
--       same pattern it changes nothing and answers the version as which that was chosen.
-- Cost  O(1). Passes when memory is full: there is one field for each event, and one fact for each change.
local event, pattern = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local kept = redis.call('HGET', KEYS[1], event)
local ok, before = pcall(cmsgpack.unpack, kept or '\128')
if not ok or type(before) ~= 'table' then before = {} end
local version, was = tonumber(before.version) or 0, before.pattern or ''
if was == pattern then return {1, version} end
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= version then return {0, version} end
version = version + 1
redis.call('HSET', KEYS[1], event,
  cmsgpack.pack({pattern = pattern, version = version, by = ARGV[3], at = now}))
raise_version(KEYS[3], clock[1] * 1000000 + clock[2])
redis.call('XADD', KEYS[2], '*', 'type', 'pattern.changed', 'time', now, 'data',
  cmsgpack.pack({event = event, pattern = pattern, version = version, by = ARGV[3], before = was}))
return {1, version}
