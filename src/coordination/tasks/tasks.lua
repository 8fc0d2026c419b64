-- What the scripts that touch tasks share: `assignment.rs` puts it between the first line and the
-- rest of each. It has functions only; a script that calls none of them does nothing with tasks.
--
-- Where things are. All of it is in keys with fixed names, so that a script declares them without
-- knowing which tasks and instances it will meet; an inbox is the one thing that is named by state.
--
--   tasks    hash: task id → its record, a MessagePack map
--   data     hash: task id → payload, `task id result` → result, `task id metadata` → metadata;
--            `instance claims` → its last claims
--   waiting  lexical: `lane order id`, all that wait
--   heads    lexical: `role kind order id`, the first of each lane; it is parked, with a `!` or a `"`
--            before it, while nobody who names capabilities could take it, with room or without
--   queue    lexical: `order id`, all that wait
--   held     lexical: `instance id`, all that are assigned; `instance *id` once a claim was answered with it
--   slots    hash: instance → `assigned capacity flags released last-fence roles`; flags: 1 it named no
--            capabilities, 2 it claims, 4 it pulls
--   free     lexical: `role place instance`, the instances that have room and neither claim nor pull; `*role` for
--            those that named no capabilities. A place is the load and, so that equals take turns, the last fence
--            that the instance was given
--   done     sorted set: finished task → when, in ms
--   counts   hash: seq, fence, completed, failed, cancelled, bytes (of the finished), waiting (bytes of
--            the payloads of those), turn (of the looks at what waits), parked (the last one looked at)
--
-- *Lexical* is a sorted set whose scores are all 0. A *lane* is all tasks of one role, kind and
-- requirements, which are served alike: one that nobody can take is in the way of its own lane
-- only. `order` is 100 - priority and a serial number, of fixed width.
--
-- Work is bounded for each call: by the limits below, and by LOOKS over all. What a call does not find
-- within them waits, and each look at what waits (`assign_task_with_load_balancing.lua`) goes on where
-- the last one stopped: so whoever fits is found, only later.
--
-- *Who waits goes first*: whoever is picked for a task gets what waits for it and comes before that one.
--
-- *Who claims* takes work by itself (`task_claim.lua`), and is given none from its first claim on. *Who pulls*, a
-- worker, does so too (`task_pull.lua`), and is told by its inbox what is its.
--
-- A script plans first: `seat` and `pick` reserve room in memory and note in `wanted` whose inbox is
-- not declared. If that is anyone, the script answers with the names and has changed nothing. Then it
-- writes, and ends with `save_slots`, which raises the version of the state if anything `changes`.
local LOOKS = 200           -- look-ups of one call, after which it searches no further
local KINDS = 128           -- kinds that wait at which an instance looks for work
local SAME = 8              -- lanes of one kind at which it looks: they differ in what they require
local AFRESH = 64           -- parked lanes of one kind at which it looks when it comes
local NEAREST = 32          -- instances of one role, by load, that a task looks at
local RARE = 32             -- instances with a handler for the rarest kind that it needs, if none fits
local NAMED = 8             -- instances that one answer names at least, where there are this many
local CHUNK = 20            -- tasks that one call takes from an instance
local FEW = 4               -- tasks that an instance which has room gets at most, where one is due
local MOVED = 2097152       -- bytes of payloads after which a call moves no more tasks
local KEPT = 10000          -- finished tasks that are kept
local KEPT_MS = 86400000    -- how long
local KEPT_BYTES = 67108864 -- bytes of payloads and results of finished tasks
local EVICTED = 24          -- finished tasks that one call removes
local SERVED = 24           -- tasks that wait which one call gives to somebody
local INBOX_MS = 86400000   -- how long the inbox of an instance that is gone is kept
local INBOX = 10000         -- entries that an inbox keeps at least, where no group reads it
local TRIMMED = 1000        -- entries beyond that which one call removes
local ASKED = 4             -- words of operators about a task that are not heeded twice

local K, micros, now
local fence
local inbox, grouped, slots, living, wanted = {}, {}, {}, {}, {}
local reserved = 0
local changes = false
-- What waits and goes to somebody, and the bytes of it.
local planned, moved = {}, 0
local evicted = 0
-- By role, kind and requirements: what comes first there and is not planned yet.
local lanes = {}
local looks = 0
-- The task that waits and is planned as if it did not.
local aside
-- The only kinds that are looked for, if not all.
local only

-- Asks the server for a search, which is bounded.
local function look(...)
  looks = looks + 1
  return redis.call(...)
end

local function spent()
  return looks >= LOOKS
end

local function words(list)
  return string.gmatch(list, '%S+')
end

-- Binds the keys from KEYS[first] on, and behind them the inboxes of `ids` in their order; returns
-- the number of the key after them. An inbox whose key is no stream is one of nobody.
local function open(first, ids)
  local names = { 'tasks', 'data', 'waiting', 'heads', 'queue', 'held', 'slots', 'free', 'done',
    'counts', 'active', 'capabilities', 'broadcast', 'state' }
  K = {}
  for i, name in ipairs(names) do K[name] = KEYS[first + i - 1] end
  local at = first + #names
  for id in words(ids) do
    local kind = redis.call('TYPE', KEYS[at]).ok
    inbox[id] = (kind == 'stream' or kind == 'none') and KEYS[at]
    at = at + 1
  end
  local clock = redis.call('TIME')
  micros = clock[1] * 1000000 + clock[2]
  now = math.floor(micros / 1000)
  return at
end

local function under(key, prefix, ...)
  -- '!' follows the space.
  return look('ZRANGEBYLEX', key, '[' .. prefix .. ' ', '(' .. prefix .. '!', ...)
end

local function count_under(key, prefix)
  return look('ZLEXCOUNT', key, '[' .. prefix .. ' ', '(' .. prefix .. '!')
end

local function holds(id)
  return redis.call('ZLEXCOUNT', K.held, '[' .. id .. ' ', '(' .. id .. '!')
end

local function alive(id)
  if living[id] == nil then
    living[id] = tonumber(look('ZSCORE', K.active, id) or 0) > now
  end
  return living[id]
end

-- Where an instance stands among those that are given tasks; nil if it is none of them.
local function place_of(is)
  if is.assigned < is.capacity and not is.claims and not is.pulls then
    return string.format('%012.0f%016.0f', is.assigned / is.capacity * 1e12, is.last)
  end
end

-- Where it stands there.
local function free_in(is, any, role, place)
  return (any and '*' or '') .. role .. ' ' .. place .. ' ' .. is.id
end

local function slot_from(id, text)
  local is = false
  if text then
    local assigned, capacity, flags, released, last, roles =
      string.match(text, '^(%d+) (%d+) (%d) (%d+) (%d+) ?(.*)$')
    is = { id = id, text = text, assigned = tonumber(assigned), capacity = tonumber(capacity),
      any = flags % 2 == 1, claims = flags % 4 >= 2, pulls = flags >= '4', released = tonumber(released),
      last = tonumber(last), roles = roles }
    is.old_place, is.old_any, is.old_roles = place_of(is), is.any, roles
  end
  slots[id] = is
  return is
end

local function slot_of(id)
  if slots[id] ~= nil then return slots[id] end
  return slot_from(id, look('HGET', K.slots, id))
end

local function in_role(is, role)
  return string.find(' ' .. is.roles .. ' ', ' ' .. role .. ' ', 1, true)
end

local function save_slots()
  for id, is in pairs(slots) do
    if is then
      local flags = (is.any and 1 or 0) + (is.claims and 2 or 0) + (is.pulls and 4 or 0)
      local place = not is.gone and place_of(is) or nil
      if place ~= is.old_place or is.any ~= is.old_any or is.roles ~= is.old_roles then
        local out, into = {}, {}
        for role in words(is.old_place and is.old_roles or '') do
          out[#out + 1] = free_in(is, is.old_any, role, is.old_place)
        end
        for role in words(place and is.roles or '') do
          into[#into + 1] = 0
          into[#into + 1] = free_in(is, is.any, role, place)
        end
        if #out > 0 then redis.call('ZREM', K.free, unpack(out)) end
        if #into > 0 then redis.call('ZADD', K.free, unpack(into)) end
      end
      local text = string.format('%d %d %d %d %.0f %s', is.assigned, is.capacity, flags,
        is.released, is.last, is.roles)
      if is.gone then
        redis.call('HDEL', K.slots, id)
        if is.claims then redis.call('HDEL', K.data, id .. ' claims') end
      elseif text ~= is.text then
        redis.call('HSET', K.slots, id, text)
      end
      changes = changes or is.gone or text ~= is.text
    end
  end
  if changes then raise_version(K.state, micros) end
end

local function task_of(id)
  local record = look('HGET', K.tasks, id)
  return record and cmsgpack.unpack(record)
end

local function save_task(id, task)
  changes, task.changed_at = true, now
  redis.call('HSET', K.tasks, id, cmsgpack.pack(task))
end

local function names(is, kind)
  return look('ZSCORE', K.capabilities, kind .. ' ' .. is.id)
end

-- Whether an instance that takes a task's kind has what it requires besides. One that registered no
-- capabilities does not say what it has handlers for: it takes any kind that requires nothing else.
local function meets(is, task)
  if is.any then return task.requires == '' end
  for kind in words(task.requires) do
    if not names(is, kind) then return false end
  end
  return true
end

-- At most this many of the instances that have a handler for the rarest kind that a task needs, which
-- changes with each look at what waits; and how many there are.
local function rarest(task, most)
  local kind, count = task.kind, count_under(K.capabilities, task.kind)
  for other in words(task.requires) do
    local of_other = count > 0 and count_under(K.capabilities, other) or count
    if of_other < count then kind, count = other, of_other end
  end
  if count == 0 then return {}, 0 end
  local first, part = look('ZLEXCOUNT', K.capabilities, '-', '(' .. kind .. ' '), 0
  if count > most then
    local turn = tonumber(look('HGET', K.counts, 'turn') or 0)
    part = turn % math.ceil(count / most) * most
  end
  local ids = {}
  for i, member in ipairs(look('ZRANGE', K.capabilities, first + part,
    first + math.min(part + most, count) - 1)) do
    ids[i] = string.sub(member, #kind + 2)
  end
  for i, text in ipairs(look('HMGET', K.slots, unpack(ids))) do
    if slots[ids[i]] == nil then slot_from(ids[i], text) end
  end
  looks = looks + #ids
  return ids, count
end

-- Whether somebody who names capabilities could take a task, with room or without; true as well where
-- that is not known.
local function hopeful(task)
  -- The first few mostly tell.
  for _, most in ipairs({ 4, RARE }) do
    if spent() then return true end
    local ids, count = rarest(task, most)
    for _, id in ipairs(ids) do
      local is = slots[id]
      if is and not is.any and in_role(is, task.role) and names(is, task.kind) and meets(is, task) then
        return true
      end
    end
    if count <= #ids then return false end
  end
  return true
end

-- Reserves room for a task with the instance of the lowest load that fits, never `not_to`; nil if
-- none was found. Those who name its kind come before those who name nothing.
local function pick(task, not_to)
  local best, least, near
  local function consider(id)
    if id == not_to or inbox[id] == false then return end
    local is = slot_of(id)
    if not is or is.claims or is.pulls or is.assigned >= is.capacity then return end
    local load = is.assigned / is.capacity
    if (not best or load < least) and alive(id) and (is.any or names(is, task.kind))
      and meets(is, task) then
      best, least = id, load
    end
  end
  -- Those that have got something in this call may not be the nearest any more.
  local most = NEAREST + reserved
  local function along(role)
    near = under(K.free, role, 'LIMIT', 0, most)
    for i, member in ipairs(near) do
      local load, id = string.match(member, '^%S+ (%d%d%d%d%d%d%d%d%d%d%d%d)%d+ (%S+)$')
      near[i] = id
      -- What was reserved since only adds to a load.
      if not spent() and (not best or tonumber(load) / 1e12 < least) then consider(id) end
    end
  end
  along(task.role)
  if not best and #near == most and not spent() then
    for _, id in ipairs(rarest(task, RARE)) do
      local is = slots[id]
      if is and in_role(is, task.role) then consider(id) end
    end
  end
  if not best and task.requires == '' then along('*' .. task.role) end
  if best then
    slots[best].assigned = slots[best].assigned + 1
    reserved = reserved + 1
    if not inbox[best] then
      wanted[best] = true
      -- Those who may be next, too: others assign meanwhile.
      for i = 1, math.min(NAMED, #near) do
        if inbox[near[i]] == nil then wanted[near[i]] = true end
      end
    end
  end
  return best
end

-- The names of those whose inboxes must be declared; nil if all are.
local function missing()
  if not next(wanted) then return nil end
  local names = {}
  for id in pairs(wanted) do names[#names + 1] = id end
  return table.concat(names, ' ')
end

-- One MessagePack value, nil if somebody deleted it.
local function payload_of(id)
  return redis.call('HGET', K.data, id) or '\192'
end

local function lane_of(task)
  return redis.sha1hex(task.role .. ' ' .. task.kind .. ' ' .. task.requires)
end

-- What a task was created with, in short.
local function made_of(kind, role, requires, priority, max_attempts, payload)
  return redis.sha1hex(table.concat({ kind, role, requires, priority, max_attempts, payload }, '\0'))
end

-- A member of `waiting` begins with a lane of this many bytes and a space.
local LANE = 40

-- The mark of a lane that is parked: those who name nothing may take the ones that require nothing.
local function mark_of(task)
  return task.requires == '' and '!' or '"'
end

local function head_of(mark, task, place)
  return mark .. task.role .. ' ' .. task.kind .. ' ' .. place
end

-- Takes a head away; returns its mark, '' if it was not parked; nil if it was no head.
local function behead(task, place)
  for _, mark in ipairs({ '', mark_of(task) }) do
    if redis.call('ZREM', K.heads, head_of(mark, task, place)) == 1 then return mark end
  end
end

local function enqueue(id, task)
  task.status, task.holder = 'pending', nil
  save_task(id, task)
  local lane, place = lane_of(task), task.order .. ' ' .. id
  redis.call('ZADD', K.queue, 0, place)
  redis.call('ZADD', K.waiting, 0, lane .. ' ' .. place)
  redis.call('HINCRBY', K.counts, 'waiting', task.bytes or 0)
  local front = redis.call('ZRANGEBYLEX', K.waiting, '[' .. lane .. ' ', '(' .. lane .. '!',
    'LIMIT', 0, 2)
  if front[1] == lane .. ' ' .. place then
    local mark
    if front[2] then mark = behead(task, string.sub(front[2], LANE + 2)) end
    mark = mark or (hopeful(task) and '' or mark_of(task))
    redis.call('ZADD', K.heads, 0, head_of(mark, task, place))
  end
  -- What was seen of the lanes does not hold any more.
  lanes = {}
  for _, is in pairs(slots) do
    if is then is.lanes = nil end
  end
end

local function unqueue(id, task)
  local lane, place = lane_of(task), task.order .. ' ' .. id
  redis.call('ZREM', K.queue, place)
  redis.call('ZREM', K.waiting, lane .. ' ' .. place)
  -- From 0: a number written as -0 is not a number to the server.
  redis.call('HINCRBY', K.counts, 'waiting', 0 - (task.bytes or 0))
  local mark = behead(task, place)
  if mark then
    local first = redis.call('ZRANGEBYLEX', K.waiting, '[' .. lane .. ' ', '(' .. lane .. '!',
      'LIMIT', 0, 1)[1]
    if first then
      redis.call('ZADD', K.heads, 0, head_of(mark, task, string.sub(first, LANE + 2)))
    end
  end
end

-- Notes that a task is with an instance that has room reserved for it, under a fence that no assignment
-- had. `told`: a claim is answered with it.
local function hand(id, task, to, told)
  if not fence then fence = tonumber(redis.call('HGET', K.counts, 'fence') or 0) end
  -- Microseconds, so that a server that lost its data does not fall back.
  fence = math.max(fence + 1, micros)
  redis.call('HSET', K.counts, 'fence', string.format('%.0f', fence))
  task.status, task.holder, task.fence, task.attempt = 'assigned', to, fence, task.attempt + 1
  slot_of(to).last = fence
  save_task(id, task)
  redis.call('ZADD', K.held, 0, to .. (told and ' *' or ' ') .. id)
end

-- Hands a task to an instance, and tells it; one that claims asks by itself.
local function give(id, task, to)
  hand(id, task, to)
  if slot_of(to).claims then return end
  local pack = cmsgpack.pack
  redis.call('XADD', inbox[to], '*', 'type', 'task.assigned',
    'id', id .. '/' .. string.format('%.0f', fence), 'time', now,
    -- A map of 5; the payload is one value already.
    'data', '\133' .. pack('task_id') .. pack(id) .. pack('kind') .. pack(task.kind)
      .. pack('payload') .. payload_of(id)
      .. pack('fence') .. pack(fence) .. pack('attempt') .. pack(task.attempt))
  -- A worker trims its own; a program that reads without a group has nobody who does.
  if grouped[to] == nil then grouped[to] = #redis.call('XINFO', 'GROUPS', inbox[to]) > 0 end
  if not grouped[to] then
    redis.call('XTRIM', inbox[to], 'MAXLEN', '~', INBOX + slot_of(to).capacity, 'LIMIT', TRIMMED)
  end
end

-- Takes a task from its holder, in memory and among the held.
local function let_go(id, task)
  redis.call('ZREM', K.held, task.holder .. ' ' .. id, task.holder .. ' *' .. id)
  local is = slot_of(task.holder)
  if is then is.assigned = math.max(is.assigned - 1, 0) end
end

-- Removes the oldest finished tasks that are over a bound.
local function evict()
  local over = redis.call('ZCARD', K.done) - KEPT
  local bytes = tonumber(redis.call('HGET', K.counts, 'bytes') or 0)
  local oldest = evicted < EVICTED and redis.call('ZRANGE', K.done, 0, EVICTED - evicted - 1, 'WITHSCORES')
    or {}
  for i = 1, #oldest, 2 do
    local id = oldest[i]
    if over <= 0 and bytes <= KEPT_BYTES and tonumber(oldest[i + 1]) > now - KEPT_MS then break end
    local task = task_of(id)
    local size = task and task.size or 0
    changes = true
    redis.call('HDEL', K.tasks, id)
    redis.call('HDEL', K.data, id, id .. ' result', id .. ' metadata')
    redis.call('ZREM', K.done, id)
    redis.call('HINCRBY', K.counts, 'bytes', 0 - size)
    over, bytes, evicted = over - 1, bytes - size, evicted + 1
  end
end

local function tell(what, fact)
  redis.call('XADD', K.broadcast, '*', 'type', 'task.' .. what, 'time', now, 'data', cmsgpack.pack(fact))
end

-- Ends a task that nobody holds any more and that does not wait, with its fact. `result` is one
-- MessagePack value.
local function finish(id, task, status, result)
  task.status = status
  task.size = #payload_of(id) + #(result or '') + (task.metadata or 0)
  save_task(id, task)
  if result then redis.call('HSET', K.data, id .. ' result', result) end
  redis.call('ZADD', K.done, now, id)
  redis.call('HINCRBY', K.counts, status, 1)
  redis.call('HINCRBY', K.counts, 'bytes', task.size)
  local fact = { task_id = id, kind = task.kind, instance_id = task.holder, fence = task.fence,
    attempt = task.attempt }
  fact.error = status == 'failed' and task.error or nil
  fact.reason = task.reason
  tell(status, fact)
  evict()
end

-- Goes on to the next task of a lane, whose `id` is nil behind the last.
local function advance(lane)
  repeat
    local next = look('ZRANGEBYLEX', K.waiting,
      '(' .. lane.key .. ' ' .. lane.order .. ' ' .. lane.id, '(' .. lane.key .. '!',
      'LIMIT', 0, 1)[1]
    if not next then
      lane.id, lane.task = nil, nil
      return
    end
    lane.order, lane.id = string.match(next, '^%S+ (%d+) (%S+)$')
    lane.task = task_of(lane.id)
  until lane.task and lane.id ~= aside
end

-- The lane that a member of `heads` is the first of; nil if somebody deleted its task.
local function lane_at(head)
  local order, id = string.match(head, '(%d+) (%S+)$')
  local task = task_of(id)
  if not task then return nil end
  local key = lane_of(task)
  if not lanes[key] then
    lanes[key] = { key = key, order = order, id = id, task = task }
    if id == aside then advance(lanes[key]) end
  end
  return lanes[key]
end

-- The lanes that an instance can take, in no order. With `afresh`, which names its capabilities, also
-- those that are parked, which then are so no more.
local function lanes_for(is, afresh)
  if is.lanes then return is.lanes end
  local found, kinds = {}, 0
  local function of_kind(mark, role, kind, most)
    for _, first in ipairs(under(K.heads, mark .. role .. ' ' .. kind, 'LIMIT', 0, most)) do
      local lane = not spent() and lane_at(first)
      if lane and lane.id and meets(is, lane.task) then
        found[#found + 1] = lane
        if mark ~= '' and not is.any then
          redis.call('ZREM', K.heads, first)
          redis.call('ZADD', K.heads, 0, string.sub(first, 2))
        end
      end
    end
  end
  local function along(mark, role)
    local from, to = '[' .. mark .. role .. ' ', '(' .. mark .. role .. '!'
    while kinds < KINDS and not spent() do
      local head = look('ZRANGEBYLEX', K.heads, from, to, 'LIMIT', 0, 1)[1]
      if not head then return end
      kinds = kinds + 1
      local kind = string.match(head, '^%S+ (%S+)')
      from = '(' .. mark .. role .. ' ' .. kind .. '!'
      if is.any or names(is, kind) then of_kind(mark, role, kind, SAME) end
    end
  end
  for kind in words(only or '') do
    if is.any or names(is, kind) then
      for role in words(is.roles) do
        if spent() then break end
        of_kind('', role, kind, SAME)
        of_kind('!', role, kind, SAME)
        if not is.any then of_kind('"', role, kind, SAME) end
      end
    end
  end
  for role in words(only and '' or is.roles) do
    along('', role)
    if is.any then along('!', role) end
  end
  if afresh and not is.any then
    for kind in words(afresh) do
      for role in words(is.roles) do
        if spent() then break end
        of_kind('!', role, kind, 1)
        of_kind('"', role, kind, AFRESH)
      end
    end
  end
  is.lanes = found
  return found
end

-- The lane whose first task comes first for an instance, and before `order` if that is given; nil if
-- no lane has one.
local function first_for(is, order)
  local first
  for _, lane in ipairs(lanes_for(is)) do
    if lane.id and (not order or lane.order < order) and (not first or lane.order < first.order) then
      first = lane
    end
  end
  return first
end

-- Plans that the first task of a lane goes to an instance where room is reserved.
local function call_up(lane, to)
  planned[#planned + 1] = { id = lane.id, task = lane.task, to = to }
  moved = moved + (lane.task.bytes or 0)
  advance(lane)
end

-- Reserves room for a task, and plans that who waits goes first; nil if it has to wait.
local function seat(task, not_to)
  local some_wait = redis.call('EXISTS', K.queue) == 1
  for _ = 1, FEW do
    if #planned >= SERVED then return nil end
    local to = pick(task, not_to)
    if not to then return nil end
    local lane = some_wait and first_for(slots[to], task.order)
    if not lane then return to end
    call_up(lane, to)
  end
end

-- Gives what was planned of those that wait; returns the ids.
local function serve()
  local ids = {}
  for i, step in ipairs(planned) do
    unqueue(step.id, step.task)
    give(step.id, step.task, step.to)
    ids[i] = step.id
  end
  planned = {}
  return ids
end

-- Gives an instance what waits for it, as long as it has room; returns the ids. Its inbox must be
-- declared. With `afresh`, which names its capabilities, it may take what nobody could before.
local function pull(to, limit, afresh)
  local is = slot_of(to)
  if not is or not alive(to) then return {} end
  if redis.call('EXISTS', K.queue) == 0 then return {} end
  -- What it may take from now on waits for its claim, too.
  if afresh then lanes_for(is, afresh) end
  if is.claims or is.pulls or not inbox[to] then return {} end
  while #planned < limit and moved < MOVED and is.assigned < is.capacity do
    local lane = first_for(is)
    if not lane then break end
    is.assigned = is.assigned + 1
    call_up(lane, to)
  end
  return serve()
end

-- Whether this was asked before, by the id of the event that asks and by all that it asks for; else it is
-- noted, for the last few. What came of it may have changed since: it is not done twice.
local function was_asked(task, what, asked, ...)
  if asked == '' then return false end
  local word = redis.sha1hex(table.concat({ what, asked, ... }, '\0'))
  local known = task.asked or {}
  for _, before in ipairs(known) do
    if before == word then return true end
  end
  known[#known + 1] = word
  while #known > ASKED do table.remove(known, 1) end
  task.asked = known
  return false
end

-- Notes that it was, where the task is as it was asked for.
local function note_asked(id, task, asked)
  if asked ~= '' then redis.call('HSET', K.tasks, id, cmsgpack.pack(task)) end
end

-- What somebody's word is answered once it is heeded: how the task is now.
local function placed(task)
  local holder = task.status == 'assigned' and task.holder or ''
  return { 'placed', task.status, holder, task.fence or 0, '' }
end

-- Takes a task from its holder by somebody's word, which costs it no attempt, with the fact.
local function take_away(id, task)
  let_go(id, task)
  tell('unassigned', { task_id = id, kind = task.kind, instance_id = task.holder, fence = task.fence,
    attempt = task.attempt })
  task.attempt = task.attempt - 1
end

-- Plans where a part of what an instance holds goes, the most urgent first. With `lost`, what has
-- had its last attempt goes nowhere.
local function plan_release(holder, lost)
  local plan, bytes = {}, 0
  for _, member in ipairs(under(K.held, holder, 'LIMIT', 0, CHUNK)) do
    local id = string.match(member, '([^ *]+)$')
    local task = task_of(id)
    if task then
      plan[#plan + 1] = { id = id, task = task }
      bytes = bytes + (task.bytes or 0)
      if bytes >= MOVED then break end
    else
      redis.call('ZREM', K.held, member)
    end
  end
  table.sort(plan, function(a, b) return a.task.order < b.task.order end)
  for _, step in ipairs(plan) do
    step.fails = lost and step.task.attempt >= step.task.max_attempts
    step.to = not step.fails and seat(step.task, holder) or nil
  end
  return plan
end

-- Does what was planned; returns how many tasks went to others or wait for them.
local function release(plan, lost)
  local reassigned = 0
  serve()
  for _, step in ipairs(plan) do
    local id, task = step.id, step.task
    let_go(id, task)
    if step.fails then
      task.error = 'unavailable: the instance ' .. task.holder .. ' was lost on the last attempt'
      finish(id, task, 'failed')
    else
      -- Whoever leaves properly has not failed.
      if not lost then task.attempt = task.attempt - 1 end
      if step.to then give(id, task, step.to) else enqueue(id, task) end
      reassigned = reassigned + 1
    end
  end
  return reassigned
end
