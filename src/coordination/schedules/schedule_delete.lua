#!lua flags=allow-oom
-- Deletes a schedule, in one step with the fact.
--
-- KEYS  1 schedules  2 their events  3 their states  4 when they are due  5 broadcast
-- ARGV  1 name  2 who deletes it  3 'over': only if no tick comes any more, else ''
-- Returns 1 if it was there. Called again it changes nothing.
-- Cost  O(log n). Passes when memory is full.
local name = ARGV[1]
local kept = redis.call('HGET', KEYS[1], name)
if not kept then
  redis.call('ZREM', KEYS[4], name)
  return 0
end
local state = decoded(redis.call('HGET', KEYS[3], name)) or {}
if ARGV[3] == 'over' and state.tick then return 0 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for at = 1, 3 do redis.call('HDEL', KEYS[at], name) end
redis.call('ZREM', KEYS[4], name)
redis.call('XADD', KEYS[5], '*', 'type', 'schedule.changed', 'source', ARGV[2], 'time', now, 'data',
  cmsgpack.pack({name = name, change = ARGV[3] == 'over' and 'over' or 'deleted', version = state.version, by = ARGV[2],
    before = decoded(kept)}))
return 1
