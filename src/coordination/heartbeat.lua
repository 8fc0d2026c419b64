#!lua flags=allow-oom
-- Renews a live instance, and counts what it did. Never brings an expired one back to life. Ends a
-- suspicion of it and names the peers that it is to watch.
--
-- KEYS  1 instance hash  2 active  3 leader  4 suspects  5 what observers said of it
--       6 capabilities  7 last report of the instance  8 totals by event type
-- ARGV  1 id  2 incarnation, or ''  3 the event type whose handlers watch each other
--       4 how many peers it watches at most  5 load, or ''  6 how it is now (MessagePack), or ''
--       7… what it did, if it reports: see `aggregate_global_metrics.lua`
-- Returns {alive, ttl in ms, leader, {peer, ms until its expiry, …}}; alive = 0: not registered,
--       expired, or another incarnation: nothing was changed.
-- Cost  O(peers * log n), and that of the report.
--
-- The peers are the next ones in the ring of all that have a handler of that type, by their ids:
-- each is watched by as many as it watches, and no one more when an instance joins or leaves.
--
-- It must pass when memory is full, or the whole fleet would expire just then. What grows by it is
-- bounded: a few fields of a hash that registration made, and what a report keeps. Registration
-- itself is refused when memory is full.
local id = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local leads = redis.call('HMGET', KEYS[3], 'id', 'until')
local leader = leads[1]
local expiries = redis.call('ZMSCORE', KEYS[2], id, leader or id)
if leader and (tonumber(leads[2] or 0) <= now or tonumber(expiries[2] or 0) <= now) then
  leader = false
end

local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation', 'ttl_ms')
if is[1] ~= 'active' or tonumber(expiries[1] or 0) <= now
  or (ARGV[2] ~= '' and ARGV[2] ~= is[2]) then
  return {0, 0, leader, {}}
end
local ttl = tonumber(is[3])
redis.call('ZADD', KEYS[2], 'XX', now + ttl, id)
local how = {'last_seen', now}
if ARGV[5] ~= '' then how[3], how[4] = 'load', ARGV[5] end
if ARGV[7] then
  local n = #how
  how[n + 1], how[n + 2], how[n + 3], how[n + 4] = 'metrics', ARGV[6], 'reported_at', now
  aggregate(KEYS[7], KEYS[8], 7)
end
redis.call('HSET', KEYS[1], unpack(how))
-- What was said before this pulse is refuted by it.
if redis.call('ZREM', KEYS[4], id) == 1 then redis.call('DEL', KEYS[5]) end

local prefix, wanted = ARGV[3] .. ' ', tonumber(ARGV[4])
local peers = {}
local function watch(from, to)
  local most = wanted - #peers
  local found = redis.call('ZRANGEBYLEX', KEYS[6], from, to, 'LIMIT', 0, most)
  for _, member in ipairs(found) do peers[#peers + 1] = string.sub(member, #prefix + 1) end
end
-- '!' follows the space.
watch('(' .. prefix .. id, '(' .. ARGV[3] .. '!')
if #peers < wanted then watch('[' .. prefix, '(' .. prefix .. id) end
local watched = {}
if #peers > 0 then
  for i, expires in ipairs(redis.call('ZMSCORE', KEYS[2], unpack(peers))) do
    watched[2 * i - 1] = peers[i]
    watched[2 * i] = math.max(tonumber(expires or 0) - now, 0)
  end
end
return {1, ttl, leader, watched}
