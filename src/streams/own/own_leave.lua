#!lua flags=allow-oom
-- Lets a partition go, so that others need not wait for its lease to end. The fence stays.
--
-- KEYS  1 owner  2 fence
-- ARGV  1 the process  2 the fence that it took it with
-- Returns 1 if it was that process's, else 0
-- Cost  O(1). Passes when memory is full.
if redis.call('HGET', KEYS[1], 'process') ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'instance', 'process', 'ttl', 'since', 'till')
return 1
