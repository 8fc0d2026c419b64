#!lua flags=allow-oom
-- Takes an instance out of the active ones at its own wish, in one step with the fact. Called
-- again it changes nothing and answers the same.
--
-- KEYS  1 instance hash  2 active  3 capabilities  4 broadcast  5 external ones
--       6 the delay queue of its inbox
--       7… one role set for each role of ARGV[4], in its order  then those of tasks.lua, and the
--       inboxes of ARGV[6], in its order; its own among them, which goes away in a day
-- ARGV  1 id  2 incarnation, or ''  3 the process that takes itself out, or '': an event asks for it
--       4 the roles whose sets are declared  5 how long the hash is kept for people to look at, in ms
--       6 the instances whose inboxes are declared
-- Returns {again, roles, unregistered, tasks reassigned, inboxes}. again = 1: the instance holds
--       roles whose sets are not declared, or its tasks go to instances whose inboxes are not;
--       nothing was changed; call again with them as well. again = 2: a part of its tasks is
--       reassigned; call again for the next. unregistered = 0: not active, another incarnation, or
--       another process has the id since. Nothing was changed either by: 3, sealed: only its own
--       process may take it out; 4, the incarnation that the event names is not the one that is there.
-- Cost  O((roles + capabilities + tasks of a part + looks of tasks.lua) * log n). Passes when
--       memory is full: it adds no more than the payloads of its tasks.
--
-- Between two parts the instance is active and has no capacity: it gets nothing, and what it still
-- holds it may still complete. If the caller goes away there, it stays so until it registers again
-- or expires.
local hash, active, capabilities, broadcast = unpack(KEYS, 1, 4)
local id, process = ARGV[1], ARGV[3]
local OUTSIDE_MS = 600000 -- how long the hash of an external one is kept
local LONG = 4096         -- bytes of capabilities that a call of their own takes away

local role_key, at = {}, 6
for role in string.gmatch(ARGV[4], '%S+') do
  at = at + 1
  role_key[role] = KEYS[at]
end

local is = redis.call('HMGET', hash, 'status', 'incarnation', 'roles', 'capabilities', 'sealed', 'process')
if is[1] == 'active' and is[5] == '1' then
  if process == '' and redis.call('ZSCORE', active, id) then return {3, '', 0, 0, ''} end
  if process ~= '' and process ~= is[6] then return {0, '', 0, 0, ''} end
end
if ARGV[2] ~= '' and ARGV[2] ~= is[2] then
  return {is[2] and process == '' and 4 or 0, is[2] or '', 0, 0, ''}
end
if is[1] == 'unregistered' then
  return {0, '', 1, tonumber(redis.call('HGET', hash, 'tasks_reassigned')), ''}
end
if is[1] ~= 'active' then return {0, '', 0, 0, ''} end
for role in string.gmatch(is[3], '%S+') do
  if not role_key[role] then return {1, is[3], 0, 0, ''} end
end

open(at + 1, ARGV[6])
local plan = plan_release(id, false)
local inboxes = missing()
if inboxes then return {1, '', 0, 0, inboxes} end
local reassigned = release(plan, false)
local slot = slot_of(id)
if slot then
  slot.released = slot.released + reassigned
  reassigned = slot.released
end
if holds(id) > 0 or (#plan > 0 and #is[4] > LONG) then
  if slot then slot.capacity = 0 end
  save_slots()
  return {2, '', 0, 0, ''}
end
if slot then slot.gone = true end
changes = true
save_slots()
if inbox[id] then redis.call('PEXPIRE', inbox[id], INBOX_MS) end
redis.call('PEXPIRE', KEYS[6], INBOX_MS)

redis.call('ZREM', active, id)
local outside = redis.call('ZREM', KEYS[5], id) == 1
for role in string.gmatch(is[3], '%S+') do redis.call('SREM', role_key[role], id) end
local could = {}
for kind in string.gmatch(is[4], '%S+') do could[#could + 1] = kind .. ' ' .. id end
-- At most 1,024.
if #could > 0 then redis.call('ZREM', capabilities, unpack(could)) end
redis.call('HDEL', hash, 'observed', 'metrics', 'did')
redis.call('HSET', hash, 'status', 'unregistered', 'ended_at', now, 'tasks_reassigned', reassigned)
if outside then
  redis.call('HDEL', hash, 'capabilities', 'metadata')
  redis.call('PEXPIRE', hash, OUTSIDE_MS)
else
  redis.call('PEXPIRE', hash, ARGV[5])
end
redis.call('XADD', broadcast, '*', 'type', 'instance.unregistered', 'time', now, 'data',
  cmsgpack.pack({id = id, incarnation = tonumber(is[2]), tasks_reassigned = reassigned}))
return {0, '', 1, reassigned, ''}
