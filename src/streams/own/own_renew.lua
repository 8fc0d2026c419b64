#!lua flags=allow-oom
-- Renews the leases of partitions that a process owns, each under the fence that it took it with.
--
-- KEYS  owner, fence; for each partition
-- ARGV  1 the process  2 how long a lease lasts, in ms  3 how long both keys outlive this, in ms
--       4.. for each partition: its fence
-- Returns for each partition 1 if it is still that process's, else 0
-- Cost  O(k) for k partitions. Passes when memory is full.
local process, ttl, kept = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local clock = redis.call('TIME')
local till = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) + ttl)
local renewed = {}
for n = 1, #KEYS / 2 do
  local owner, fence = KEYS[2 * n - 1], KEYS[2 * n]
  renewed[n] = 0
  if redis.call('HGET', owner, 'process') == process and redis.call('GET', fence) == ARGV[3 + n] then
    redis.call('HSET', owner, 'ttl', ttl, 'till', till)
    redis.call('PEXPIRE', owner, kept)
    redis.call('PEXPIRE', fence, kept)
    renewed[n] = 1
  end
end
return renewed
