#!lua flags=allow-oom
-- Declares an expired instance lost, in one step with the fact; whoever comes first does it, for
-- the others it changes nothing.
--
-- KEYS  1 instance hash  2 active  3 capabilities  4 recently lost  5 broadcast
--       6… one role set for each role of ARGV[2], in its order
-- ARGV  1 id  2 the roles whose sets are declared  3 how long the hash is kept for people to look
--       at, in ms  4 how long an instance counts as recently lost, in ms
-- Returns {again, roles, lost, incarnation, last seen, tasks reassigned}. again = 1: the instance
--       holds roles whose sets are not declared; nothing was changed; call again with them as well.
--       lost = 0: not active, or not expired.
-- Cost  O((roles + capabilities) * log n). Passes when memory is full: it frees more than it adds.
local hash, active, capabilities, lost, broadcast = unpack(KEYS, 1, 5)
local id = ARGV[1]

local role_key, at = {}, 5
for role in string.gmatch(ARGV[2], '%S+') do
  at = at + 1
  role_key[role] = KEYS[at]
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expires = tonumber(redis.call('ZSCORE', active, id) or '')
if not expires or expires > now then return {0, '', 0, '0', 0, 0} end

-- Somebody may have deleted the hash: the instance is lost all the same.
local is = redis.call('HMGET', hash, 'incarnation', 'roles', 'capabilities', 'last_seen')
local incarnation, roles, kinds = is[1] or '0', is[2] or '', is[3] or ''
local last_seen = tonumber(is[4] or expires)
for role in string.gmatch(roles, '%S+') do
  if not role_key[role] then return {1, roles, 0, '0', 0, 0} end
end

local reassigned = 0
redis.call('ZREM', active, id)
for role in string.gmatch(roles, '%S+') do redis.call('SREM', role_key[role], id) end
for kind in string.gmatch(kinds, '%S+') do redis.call('ZREM', capabilities, kind .. ' ' .. id) end
if is[1] then
  redis.call('HDEL', hash, 'observed', 'metrics')
  redis.call('HSET', hash, 'status', 'lost', 'ended_at', now, 'tasks_reassigned', reassigned)
  redis.call('PEXPIRE', hash, ARGV[3])
end
redis.call('ZREMRANGEBYSCORE', lost, '-inf', now - ARGV[4])
redis.call('ZADD', lost, now, id)
redis.call('PEXPIRE', lost, ARGV[4])
redis.call('XADD', broadcast, '*', 'type', 'instance.lost', 'time', now, 'data', cmsgpack.pack({
  id = id, incarnation = tonumber(incarnation), last_seen = last_seen, tasks_reassigned = reassigned
}))
return {0, '', 1, incarnation, last_seen, reassigned}
