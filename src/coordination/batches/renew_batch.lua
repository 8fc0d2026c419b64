#!lua flags=allow-oom
-- Renews the lease of a batch, or gives it back.
--
-- KEYS  1 the batch  2 its finished items
-- ARGV  1 fence  2 lease in ms; 0 gives it back: whoever asks next holds it; a batch of nobody's stays as it is,
--       since others may be at it  3 how long a batch is
--       kept that nobody goes on with, in ms
-- Returns 1; 0 if the fence is not the last holder's, or a renewal is of a lease that was given back: nothing was
--       changed. A renewal may arrive after what was sent later: a lease that it brought back would be nobody's, and
--       who asks for the batch would be told that it is under way.
-- Cost  O(1). Passes when memory is full, or every holder would lose its batch just then; nothing
--       grows by it.
local is = redis.call('HMGET', KEYS[1], 'fence', 'status', 'shared', 'run')
if is[1] ~= ARGV[1] then return 0 end
local shared = is[3] == '1'
if is[2] == 'completed' or (shared and ARGV[2] == '0') then return 1 end
if ARGV[2] ~= '0' and not shared and not is[4] then return 0 end
local expires = 0
if ARGV[2] ~= '0' then
  local clock = redis.call('TIME')
  expires = clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2]
else
  -- The run that gives it back does not hold it any more, nor does its event.
  redis.call('HDEL', KEYS[1], 'run', 'entry', 'event', 'delivery')
end
redis.call('HSET', KEYS[1], 'expires', expires)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
