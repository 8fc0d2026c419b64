#!lua flags=allow-oom
-- Renews a live instance. Never brings an expired one back to life.
--
-- KEYS  1 instance hash  2 active  3 leader
-- ARGV  1 id  2 incarnation, or ''  3… names and values of hash fields that the caller checked:
--       load, observed, metrics
-- Returns {alive, ttl in ms, leader}; alive = 0: not registered, expired, or another incarnation.
-- Cost  O(log n).
--
-- It must pass when memory is full, or the whole fleet would expire just then. Nothing grows by
-- it but the few fields of a hash that registration made, which the caller bounds; registration
-- itself is refused when memory is full.
local id = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation', 'ttl_ms')
local expires = tonumber(redis.call('ZSCORE', KEYS[2], id) or 0)
local leader = redis.call('HGET', KEYS[3], 'id')
if is[1] ~= 'active' or expires <= now or (ARGV[2] ~= '' and ARGV[2] ~= is[2]) then
  return {0, 0, leader}
end
local ttl = tonumber(is[3])
redis.call('ZADD', KEYS[2], 'XX', now + ttl, id)
redis.call('HSET', KEYS[1], 'last_seen', now, unpack(ARGV, 3))
return {1, ttl, leader}
