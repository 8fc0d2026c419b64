#!lua
-- Makes an instance active, or renews and replaces what a live one registered, in one step with
-- the fact, and gives it what waits for it. The same call twice changes nothing more than the
-- expiry.
--
-- KEYS  1 instance hash  2 active  3 capabilities  4 recently lost  5 broadcast  6 leader
--       7 suspects  8 what observers said of it  9 external ones  10 recently lost external ones
--       11 the delay queue of its inbox
--       12… one role set for each role of ARGV[7], in its order  then those of tasks.lua, and the
--       instance's inbox; it and its delay queue are kept for good from here on
-- ARGV  1 id  2 ttl in ms  3 capacity  4 metadata (MessagePack)  5 roles  6 capabilities
--       7 the roles whose sets are declared: at least those of ARGV[5]  8 the most tasks that it
--       gets  9 the process that registers itself, or '': an event asks for it  10 1 if that process
--       begins, 0 if it registers again  11 the incarnation that the event names, or ''  12 external
--       instances at the most  13 the highest incarnation that the process has seen of its own, or 0
--       Lists are words with one space between them, in sorted order.
-- Returns {again, roles, incarnation, new, leader, tasks, seal}. again = 1: the instance holds roles
--       whose sets are not declared; nothing was changed; call again with them as well. again = 2: it
--       is past its expiry and holds tasks; nothing was changed; have it declared lost, and call again.
--       Nothing was changed either by: 3, sealed: only its own process may register it; 4, another
--       process began under the id since, or this one took itself out; 5, the incarnation is another
--       one, which comes back; 6, there are too many external instances.
-- Cost  O((roles + capabilities + tasks + looks of tasks.lua) * log n). Refused when memory is full.
--
-- What a process registers of itself is *sealed*: no event changes it, and nothing but this argument
-- says which of the two a call is. All others are *external*: listed in a set of their own as well.
--
-- A sealed instance that is past its expiry but was not swept yet goes on as who it was if the same
-- process registers again: see `silence.rs`. Any other one that holds no tasks begins a new incarnation
-- here, without an instance.lost: the fact of the higher incarnation says that the older one ended, and
-- whoever registers again under an id takes its own pending entries back.
local hash, active, capabilities, lost, broadcast, leader, suspects, voices, external,
  lost_external = unpack(KEYS, 1, 10)
local id, ttl, capacity, metadata, roles, kinds = unpack(ARGV, 1, 6)
local process, begins, named = unpack(ARGV, 9, 11)
local own = process ~= ''

local function set_of(list)
  local set = {}
  for word in words(list) do set[word] = true end
  return set
end

local role_key, at = {}, 11
for role in words(ARGV[7]) do
  at = at + 1
  role_key[role] = KEYS[at]
end

open(at + 1, id)
local before = redis.call('HMGET', hash, 'status', 'incarnation', 'roles', 'capabilities', 'capacity',
  'metadata', 'sealed', 'process', 'restarts', 'started_at', 'ttl_ms')
local expires = tonumber(redis.call('ZSCORE', active, id) or 0)
local known = before[1] == 'active'
local sealed = known and before[7] == '1' and expires > 0
local mine = own and before[8] == process
local alive = known and (expires > now or (mine and sealed)) and (sealed or not own)
local function refused(why)
  return {why, '', before[2] or '0', 0, false, {}, ''}
end

if sealed and not own then return refused(3) end
if sealed and not mine and expires > now and begins == '0' then return refused(4) end
-- It took itself out since: a call that was on its way then would leave an instance of nobody.
if mine and begins == '0' and before[1] == 'unregistered' then return refused(4) end
if named ~= '' and not (alive and named == before[2]) then return refused(5) end
if not own and not redis.call('ZSCORE', external, id)
  and redis.call('ZCARD', external) >= tonumber(ARGV[12]) then
  return refused(6)
end
if expires > 0 and expires <= now and not alive and holds(id) > 0 then return refused(2) end
local could = {}
if known then
  for role in words(before[3]) do
    if not role_key[role] then return {1, before[3], '0', 0, false, {}, ''} end
  end
  local keeps = set_of(roles)
  for role in words(before[3]) do
    if not keeps[role] then redis.call('SREM', role_key[role], id) end
  end
  keeps = set_of(kinds)
  for kind in words(before[4]) do
    if not keeps[kind] then could[#could + 1] = kind .. ' ' .. id end
  end
  -- At most 1,024.
  if #could > 0 then redis.call('ZREM', capabilities, unpack(could)) end
end

-- Microseconds outlive the hash, and the process knows its last one: after a FLUSHALL the number still
-- rises, even where the clock stepped back.
local incarnation = before[2]
if not alive then
  local last = tonumber(before[2] or 0)
  incarnation = string.format('%.0f', math.max(last + 1, tonumber(ARGV[13]) + 1, micros))
  redis.call('DEL', hash, voices)
  redis.call('ZREM', suspects, id)
  redis.call('HSET', hash, 'registered_at', now, 'load', 0)
end
-- Other processes that had the id before, and since when this one has it.
local restarts, started = tonumber(before[9] or 0), before[10]
if own and before[8] and not mine then restarts = restarts + 1 end
if not (mine and started) then started = alive and not own and started or now end
redis.call('HSET', hash, 'id', id, 'status', 'active', 'incarnation', incarnation,
  'roles', roles, 'capacity', capacity, 'capabilities', kinds, 'metadata', metadata,
  'ttl_ms', ttl, 'last_seen', now, 'started_at', started)
if own then
  redis.call('HSET', hash, 'sealed', 1, 'process', process, 'restarts', restarts)
  redis.call('ZREM', external, id)
else
  redis.call('ZADD', external, now + ttl, id)
end
redis.call('ZADD', active, now + ttl, id)
redis.call('ZREM', lost, id)
redis.call('ZREM', lost_external, id)
for role in words(roles) do redis.call('SADD', role_key[role], id) end
local can = {}
for kind in words(kinds) do
  can[#can + 1] = 0
  can[#can + 1] = kind .. ' ' .. id
end
if #can > 0 then redis.call('ZADD', capabilities, unpack(can)) end

local changed = not alive or before[3] ~= roles or before[4] ~= kinds
  or before[5] ~= capacity or before[6] ~= metadata or (own and not mine)
if changed then
  local held = {}
  for role in words(roles) do held[#held + 1] = role end
  local fact = {id = id, roles = held, incarnation = tonumber(incarnation)}
  if own and restarts > 0 then fact.restarts = restarts end
  if not own then fact.external = true end
  redis.call('XADD', broadcast, '*', 'type', 'instance.registered', 'time', now, 'data',
    cmsgpack.pack(fact))
end

changes = changes or changed or expires <= now or before[11] ~= ttl
local slot = slot_of(id) or { id = id, last = 0 }
slots[id] = slot
slot.assigned, slot.capacity, slot.released = holds(id), tonumber(capacity), 0
-- How it comes by its work it says again.
if not alive or (own and not mine) then slot.pulls = false end
slot.roles, slot.any = roles, kinds == ''
if not alive and slot.claims then
  slot.claims = nil
  redis.call('HDEL', K.data, id .. ' claims')
end
-- A long list of capabilities has cost as much as a search.
looks = looks + math.floor((#can / 2 + #could) / 10)
if inbox[id] then redis.call('PERSIST', inbox[id]) end
redis.call('PERSIST', KEYS[11])
local given = pull(id, tonumber(ARGV[8]), changed and kinds)
save_slots()
local leads = redis.call('HMGET', leader, 'id', 'until')
local stands = leads[1] and tonumber(leads[2] or 0) > now
  and tonumber(redis.call('ZSCORE', active, leads[1]) or 0) > now
local seal = redis.sha1hex(table.concat({roles, kinds, capacity, metadata}, '\n'))
return {0, '', incarnation, alive and 0 or 1, stands and leads[1], given, seal}
