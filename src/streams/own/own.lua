#!lua flags=allow-oom
-- Takes a partition for a process: one that nobody owns, that it owns already, or whose owner's lease the caller saw end.
-- Raises the fence in the same step: what was sent under an earlier one changes nothing from here on.
--
-- KEYS  1 owner  2 fence
-- ARGV  1 the instance  2 its process  3 how long the lease lasts, in ms
--       4 the process whose lease ended, and 5 until when it lasted, as the caller saw it; '' '': none was seen
--       6 until when by the server's clock this may be run  7 1: what another process of this instance owns, too
--       8 how long both keys outlive the last renewal, in ms
-- Returns {1, the fence} if the process owns it now, else {0, ''}
-- Cost  O(1). Passes when memory is full: a partition and group have two keys.
local owner, fence, me, process, ttl = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if now > tonumber(ARGV[6]) then return {0, ''} end
local is = redis.call('HMGET', owner, 'instance', 'process', 'till')
local mine = is[2] == process or (ARGV[7] == '1' and is[1] == me)
local ended = is[2] == ARGV[4] and is[3] == ARGV[5]
if is[2] and not mine and not ended then return {0, ''} end
-- By the clock, so that it rises where the server lost what it was.
local micros = clock[1] * 1000000 + clock[2]
local last = tonumber(redis.call('GET', fence) or '') or 0
local raised = string.format('%.0f', math.max(last + 1, micros))
redis.call('SET', fence, raised, 'PX', ARGV[8])
redis.call('HSET', owner, 'instance', me, 'process', process, 'ttl', ttl,
  'since', string.format('%.0f', now), 'till', string.format('%.0f', now + ttl))
redis.call('PEXPIRE', owner, ARGV[8])
return {1, raised}
