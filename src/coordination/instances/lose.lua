#!lua flags=allow-oom
-- Declares an expired instance lost, in one step with the fact; whoever comes first does it, for
-- the others it changes nothing.
--
-- KEYS  1 instance hash  2 active  3 capabilities  4 recently lost  5 broadcast  6 external ones
--       7 recently lost external ones  8 the delay queue of its inbox
--       9… one role set for each role of ARGV[2], in its order  then those of tasks.lua, and the
--       inboxes of ARGV[5], in its order; its own among them, which goes away in a day
-- ARGV  1 id  2 the roles whose sets are declared  3 how long the hash is kept for people to look
--       at, in ms  4 how long an instance counts as recently lost, in ms  5 the instances whose
--       inboxes are declared  6 since when silence counts, in ms, or '' (it is over for another reason)
--       7 from when and  8 until when the call may be run, in ms: another time is not the one in which
--       it was made
-- Returns {again, roles, lost, incarnation, last seen, tasks reassigned, inboxes}. again = 1: the
--       instance holds roles whose sets are not declared, or its tasks go to instances whose inboxes
--       are not; nothing was changed; call again with them as well. again = 2: a part of its tasks
--       is reassigned; call again for the next. lost = 0: not active, not expired, not silent for
--       long enough of the time that counts, or called at another time.
-- Cost  O((roles + capabilities + tasks of a part + looks of tasks.lua) * log n). Passes when
--       memory is full: it adds no more than the payloads of its tasks.
--
-- Which silence counts: see `silence.rs`.
--
-- Between two parts the instance is expired and not lost yet: it gets nothing, and what it still
-- holds it may still complete.
local hash, active, capabilities, lost, broadcast, external, lost_external = unpack(KEYS, 1, 7)
local id = ARGV[1]
local OUTSIDE = 1000 -- recently lost external ones that are listed
local LONG = 4096    -- bytes of capabilities that a call of their own takes away
local QUIET = 5 / 6  -- of a ttl that must count as silence; `silence.rs` has the same

local role_key, at = {}, 8
for role in string.gmatch(ARGV[2], '%S+') do
  at = at + 1
  role_key[role] = KEYS[at]
end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local expires = tonumber(redis.call('ZSCORE', active, id) or '')
if not expires or expires > now then return {0, '', 0, '0', 0, 0, ''} end
if now < tonumber(ARGV[7]) or now > tonumber(ARGV[8]) then return {0, '', 0, '0', 0, 0, ''} end

-- Somebody may have deleted the hash: the instance is lost all the same.
local is = redis.call('HMGET', hash, 'incarnation', 'roles', 'capabilities', 'last_seen', 'ttl_ms')
local incarnation, roles, kinds = is[1] or '0', is[2] or '', is[3] or ''
local last_seen = tonumber(is[4] or expires)
if ARGV[6] ~= '' and now - tonumber(ARGV[6]) < QUIET * tonumber(is[5] or 0) then
  return {0, '', 0, '0', 0, 0, ''}
end
for role in string.gmatch(roles, '%S+') do
  if not role_key[role] then return {1, roles, 0, '0', 0, 0, ''} end
end

open(at + 1, ARGV[5])
local plan = plan_release(id, true)
local inboxes = missing()
if inboxes then return {1, '', 0, '0', 0, 0, inboxes} end
local reassigned = release(plan, true)
local slot = slot_of(id)
if slot then
  slot.released = slot.released + reassigned
  reassigned = slot.released
end
if holds(id) > 0 or (#plan > 0 and #kinds > LONG) then
  save_slots()
  return {2, '', 0, '0', 0, 0, ''}
end
if slot then slot.gone = true end
changes = true
save_slots()
if inbox[id] then redis.call('PEXPIRE', inbox[id], INBOX_MS) end
redis.call('PEXPIRE', KEYS[8], INBOX_MS)

redis.call('ZREM', active, id)
local outside = redis.call('ZREM', external, id) == 1
if outside then lost = lost_external end
for role in string.gmatch(roles, '%S+') do redis.call('SREM', role_key[role], id) end
local could = {}
for kind in string.gmatch(kinds, '%S+') do could[#could + 1] = kind .. ' ' .. id end
-- At most 1,024.
if #could > 0 then redis.call('ZREM', capabilities, unpack(could)) end
if is[1] then
  redis.call('HDEL', hash, 'observed', 'metrics', 'did')
  redis.call('HSET', hash, 'status', 'lost', 'ended_at', now, 'tasks_reassigned', reassigned)
  redis.call('PEXPIRE', hash, outside and ARGV[4] or ARGV[3])
  if outside then redis.call('HDEL', hash, 'capabilities', 'metadata') end
end
-- Where many lapsed together, a part of them: no count is of those.
local lapsed = redis.call('ZRANGEBYSCORE', lost, '-inf', now - ARGV[4], 'LIMIT', 0, 100)
if #lapsed > 0 then redis.call('ZREM', lost, unpack(lapsed)) end
redis.call('ZADD', lost, now, id)
if outside then redis.call('ZREMRANGEBYRANK', lost, 0, -1 - OUTSIDE) end
redis.call('PEXPIRE', lost, ARGV[4])
redis.call('XADD', broadcast, '*', 'type', 'instance.lost', 'time', now, 'data', cmsgpack.pack({
  id = id, incarnation = tonumber(incarnation), last_seen = last_seen, tasks_reassigned = reassigned
}))
return {0, '', 1, incarnation, last_seen, reassigned, ''}
