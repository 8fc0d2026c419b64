#!lua flags=allow-oom
-- Renews a live instance. Never brings an expired one back to life. Ends a suspicion of it and
-- names the peers that it is to watch.
--
-- KEYS  1 instance hash  2 active  3 leader  4 suspects  5 what observers said of it
--       6 capabilities
-- ARGV  1 id  2 incarnation, or ''  3 the event type whose handlers watch each other
--       4 how many peers it watches at most  5 load, or ''
-- Returns {alive, ttl in ms, leader, {peer, ms until its expiry, …}}; alive = 0: not registered,
--       expired, or another incarnation.
-- Cost  O(peers * log n).
--
-- The peers are the next ones in the ring of all that have a handler of that type, by their ids:
-- each is watched by as many as it watches, and no one more when an instance joins or leaves.
--
-- It must pass when memory is full, or the whole fleet would expire just then. Nothing grows by
-- it but the few fields of a hash that registration made, which the caller bounds; registration
-- itself is refused when memory is full.
local id = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function expiry(instance)
  return tonumber(redis.call('ZSCORE', KEYS[2], instance) or 0)
end

local leads = redis.call('HMGET', KEYS[3], 'id', 'until')
local leader = leads[1]
if leader and (tonumber(leads[2] or 0) <= now or expiry(leader) <= now) then leader = false end

local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation', 'ttl_ms')
if is[1] ~= 'active' or expiry(id) <= now or (ARGV[2] ~= '' and ARGV[2] ~= is[2]) then
  return {0, 0, leader, {}}
end
local ttl = tonumber(is[3])
redis.call('ZADD', KEYS[2], 'XX', now + ttl, id)
redis.call('HSET', KEYS[1], 'last_seen', now)
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'load', ARGV[5]) end
-- What was said before this pulse is refuted by it.
if redis.call('ZREM', KEYS[4], id) == 1 then redis.call('DEL', KEYS[5]) end

local prefix, wanted = ARGV[3] .. ' ', tonumber(ARGV[4])
local peers = {}
local function watch(from, to, most)
  for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[6], from, to, 'LIMIT', 0, most)) do
    local peer = string.sub(member, #prefix + 1)
    peers[#peers + 1] = peer
    peers[#peers + 1] = math.max(expiry(peer) - now, 0)
  end
end
-- '!' follows the space.
watch('(' .. prefix .. id, '(' .. ARGV[3] .. '!', wanted)
if #peers / 2 < wanted then watch('[' .. prefix, '(' .. prefix .. id, wanted - #peers / 2) end
return {1, ttl, leader, peers}
