-- What the scripts that touch tasks share: `assignment.rs` puts it between the first line and the
-- rest of each. It has functions only; a script that calls none of them does nothing with tasks.
--
-- Where things are. All of it is in keys with fixed names, so that a script declares them without
-- knowing which tasks and instances it will meet; an inbox is the one thing that is named by state.
--
--   tasks    hash: task id → its record, a MessagePack map
--   data     hash: task id → payload, `task id result` → result
--   waiting  lexical: `lane order id`, all that wait
--   heads    lexical: `role order id`, the first of each lane
--   queue    lexical: `order id`, all that wait
--   held     lexical: `instance id`, all that are assigned
--   slots    hash: instance → `assigned capacity any released last-fence roles`
--   free     lexical: `role place instance`, the instances that have room; a place is the load and,
--            so that equals take turns, the last fence that the instance was given
--   done     sorted set: finished task → when, in ms
--   counts   hash: seq, fence, completed, failed, bytes (of the finished)
--
-- *Lexical* is a sorted set whose scores are all 0. A *lane* is all tasks of one role, kind and
-- requirements, which are served alike: one that nobody can take is in the way of its own lane
-- only. `order` is 100 - priority and a serial number, of fixed width.
--
-- A script plans first: `pick` reserves room in memory and notes in `wanted` whose inbox is not
-- declared. If that is anyone, the script answers with the names and has changed nothing. Then it
-- writes, and ends with `save_slots`.
local LANES = 64            -- lanes of one role that an instance looks at for work
local NEAREST = 32          -- instances of one role, by load, that a task looks at
local RARE = 256            -- instances with a handler for its kind that it looks at if none fits
local NAMED = 8             -- instances that one answer names at least, where there are so many
local CHUNK = 50            -- tasks that one call takes from an instance
local FEW = 4               -- tasks that an instance which has room gets at most, where one is due
local KEPT = 10000          -- finished tasks that are kept
local KEPT_MS = 86400000    -- how long
local KEPT_BYTES = 67108864 -- bytes of payloads and results of finished tasks
local EVICTED = 16          -- finished tasks that one call removes
local INBOX_MS = 86400000   -- how long the inbox of an instance that is gone is kept
local INBOX = 10000         -- entries that an inbox keeps at least, where no group reads it

local K, micros, now
local fence
local inbox, slots, living, unfit, wanted = {}, {}, {}, {}, {}
local reserved = 0

local function words(list)
  return string.gmatch(list, '%S+')
end

-- Binds the keys from KEYS[first] on, and behind them the inboxes of `ids` in their order; returns
-- the number of the key after them. An inbox whose key is no stream is one of nobody.
local function open(first, ids)
  local names = { 'tasks', 'data', 'waiting', 'heads', 'queue', 'held', 'slots', 'free', 'done',
    'counts', 'active', 'capabilities', 'broadcast' }
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
  return redis.call('ZRANGEBYLEX', key, '[' .. prefix .. ' ', '(' .. prefix .. '!', ...)
end

local function holds(id)
  return redis.call('ZLEXCOUNT', K.held, '[' .. id .. ' ', '(' .. id .. '!')
end

local function alive(id)
  if living[id] == nil then
    living[id] = tonumber(redis.call('ZSCORE', K.active, id) or 0) > now
  end
  return living[id]
end

-- Where an instance stands among those that have room; nil if it has none.
local function place_of(is)
  if is.assigned < is.capacity then
    return string.format('%012.0f%016.0f', is.assigned / is.capacity * 1e12, is.last)
  end
end

local function slot_of(id)
  local is = slots[id]
  if is == nil then
    is = false
    local text = redis.call('HGET', K.slots, id)
    if text then
      local assigned, capacity, any, released, last, roles =
        string.match(text, '^(%d+) (%d+) (%d) (%d+) (%d+) ?(.*)$')
      is = { id = id, text = text, assigned = tonumber(assigned), capacity = tonumber(capacity),
        any = any == '1', released = tonumber(released), last = tonumber(last), roles = roles }
      is.old_place, is.old_roles = place_of(is), roles
    end
    slots[id] = is
  end
  return is
end

local function save_slots()
  for id, is in pairs(slots) do
    if is then
      local place = not is.gone and place_of(is) or nil
      if place ~= is.old_place or is.roles ~= is.old_roles then
        if is.old_place then
          for role in words(is.old_roles) do
            redis.call('ZREM', K.free, role .. ' ' .. is.old_place .. ' ' .. id)
          end
        end
        if place then
          for role in words(is.roles) do
            redis.call('ZADD', K.free, 0, role .. ' ' .. place .. ' ' .. id)
          end
        end
      end
      local text = string.format('%d %d %d %d %.0f %s', is.assigned, is.capacity, is.any and 1 or 0,
        is.released, is.last, is.roles)
      if is.gone then
        redis.call('HDEL', K.slots, id)
      elseif text ~= is.text then
        redis.call('HSET', K.slots, id, text)
      end
    end
  end
end

local function task_of(id)
  local record = redis.call('HGET', K.tasks, id)
  return record and cmsgpack.unpack(record)
end

local function save_task(id, task)
  task.changed_at = now
  redis.call('HSET', K.tasks, id, cmsgpack.pack(task))
end

-- Whether an instance has what a task needs. One that registered no capabilities does not say what
-- it has handlers for: it takes any kind that requires nothing else.
local function fits(is, task)
  if is.any then return task.requires == '' end
  local function has(kind)
    return redis.call('ZSCORE', K.capabilities, kind .. ' ' .. is.id)
  end
  if not has(task.kind) then return false end
  for kind in words(task.requires) do
    if not has(kind) then return false end
  end
  return true
end

-- Reserves room for a task with the instance of the lowest load that fits, never `not_to`; nil if
-- there is none.
local function pick(task, not_to)
  local best, least
  local function consider(id)
    if id == not_to or inbox[id] == false then return end
    local is = slot_of(id)
    if not is or is.assigned >= is.capacity then return end
    local load = is.assigned / is.capacity
    if (not best or load < least) and alive(id) and fits(is, task) then best, least = id, load end
  end
  -- Those that have got something in this call may not be the nearest any more.
  local most = NEAREST + reserved
  local nearest = under(K.free, task.role, 'LIMIT', 0, most)
  for i, member in ipairs(nearest) do
    local load, id = string.match(member, '^%S+ (%d%d%d%d%d%d%d%d%d%d%d%d)%d+ (%S+)$')
    nearest[i] = id
    -- What was reserved since only adds to a load.
    if not best or tonumber(load) / 1e12 < least then consider(id) end
  end
  if not best and #nearest == most then
    for _, member in ipairs(under(K.capabilities, task.kind, 'LIMIT', 0, RARE)) do
      local id = string.sub(member, #task.kind + 2)
      local is = slot_of(id)
      if is and string.find(' ' .. is.roles .. ' ', ' ' .. task.role .. ' ', 1, true) then
        consider(id)
      end
    end
  end
  if best then
    slots[best].assigned = slots[best].assigned + 1
    reserved = reserved + 1
    if not inbox[best] then
      wanted[best] = true
      -- Those who may be next, too: others assign meanwhile.
      for i = 1, math.min(NAMED, #nearest) do
        if inbox[nearest[i]] == nil then wanted[nearest[i]] = true end
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

-- A member of `waiting` begins with a lane of this many bytes and a space.
local LANE = 40

local function enqueue(id, task)
  task.status, task.holder = 'pending', nil
  save_task(id, task)
  local lane, place = lane_of(task), task.order .. ' ' .. id
  redis.call('ZADD', K.queue, 0, place)
  redis.call('ZADD', K.waiting, 0, lane .. ' ' .. place)
  local front = under(K.waiting, lane, 'LIMIT', 0, 2)
  if front[1] == lane .. ' ' .. place then
    if front[2] then
      redis.call('ZREM', K.heads, task.role .. ' ' .. string.sub(front[2], LANE + 2))
    end
    redis.call('ZADD', K.heads, 0, task.role .. ' ' .. place)
  end
end

local function unqueue(id, task)
  local lane, place = lane_of(task), task.order .. ' ' .. id
  redis.call('ZREM', K.queue, place)
  redis.call('ZREM', K.waiting, lane .. ' ' .. place)
  if redis.call('ZREM', K.heads, task.role .. ' ' .. place) == 1 then
    local first = under(K.waiting, lane, 'LIMIT', 0, 1)[1]
    if first then
      redis.call('ZADD', K.heads, 0, task.role .. ' ' .. string.sub(first, LANE + 2))
    end
  end
end

-- Hands a task to an instance that has room reserved for it, under a fence that no assignment had.
local function give(id, task, to)
  if not fence then fence = tonumber(redis.call('HGET', K.counts, 'fence') or 0) end
  -- Microseconds, so that a server that lost its data does not fall back.
  fence = math.max(fence + 1, micros)
  redis.call('HSET', K.counts, 'fence', string.format('%.0f', fence))
  task.status, task.holder, task.fence, task.attempt = 'assigned', to, fence, task.attempt + 1
  slot_of(to).last = fence
  save_task(id, task)
  redis.call('ZADD', K.held, 0, to .. ' ' .. id)
  local pack = cmsgpack.pack
  redis.call('XADD', inbox[to], '*', 'type', 'task.assigned',
    'id', id .. '/' .. string.format('%.0f', fence), 'time', now,
    -- A map of 5; the payload is one value already.
    'data', '\133' .. pack('task_id') .. pack(id) .. pack('kind') .. pack(task.kind)
      .. pack('payload') .. payload_of(id)
      .. pack('fence') .. pack(fence) .. pack('attempt') .. pack(task.attempt))
  -- A worker trims its own; a program that reads without a group has nobody who does.
  if #redis.call('XINFO', 'GROUPS', inbox[to]) == 0 then
    redis.call('XTRIM', inbox[to], 'MAXLEN', '~', INBOX + slot_of(to).capacity)
  end
end

-- Takes a task from its holder, in memory and among the held.
local function let_go(id, task)
  redis.call('ZREM', K.held, task.holder .. ' ' .. id)
  local is = slot_of(task.holder)
  if is then is.assigned = math.max(is.assigned - 1, 0) end
end

-- Removes the oldest finished tasks that are over a bound.
local function evict()
  local over = redis.call('ZCARD', K.done) - KEPT
  local bytes = tonumber(redis.call('HGET', K.counts, 'bytes') or 0)
  local oldest = redis.call('ZRANGE', K.done, 0, EVICTED - 1, 'WITHSCORES')
  for i = 1, #oldest, 2 do
    local id = oldest[i]
    if over <= 0 and bytes <= KEPT_BYTES and tonumber(oldest[i + 1]) > now - KEPT_MS then break end
    local task = task_of(id)
    local size = task and task.size or 0
    redis.call('HDEL', K.tasks, id)
    redis.call('HDEL', K.data, id, id .. ' result')
    redis.call('ZREM', K.done, id)
    redis.call('HINCRBY', K.counts, 'bytes', -size)
    over, bytes = over - 1, bytes - size
  end
end

-- Ends a task that nobody holds any more, with its fact. `result` is one MessagePack value.
local function finish(id, task, status, result)
  task.status = status
  task.size = #payload_of(id) + #(result or '')
  save_task(id, task)
  if result then redis.call('HSET', K.data, id .. ' result', result) end
  redis.call('ZADD', K.done, now, id)
  redis.call('HINCRBY', K.counts, status, 1)
  redis.call('HINCRBY', K.counts, 'bytes', task.size)
  local fact = { task_id = id, kind = task.kind, instance_id = task.holder, fence = task.fence,
    attempt = task.attempt }
  if status == 'failed' then fact.error = task.error end
  redis.call('XADD', K.broadcast, '*', 'type', 'task.' .. status, 'time', now,
    'data', cmsgpack.pack(fact))
  evict()
end

-- What waits and comes first for an instance: id and task; nil if nothing does.
local function next_for(is)
  local first, id_of, task
  for role in words(is.roles) do
    for _, head in ipairs(under(K.heads, role, 'LIMIT', 0, LANES)) do
      local order, id = string.match(head, '^%S+ (%d+) (%S+)$')
      if first and order >= first then break end
      if not unfit[id] then
        local waits = task_of(id)
        if waits and fits(is, waits) then
          first, id_of, task = order, id, waits
          break
        end
        unfit[id] = true
      end
    end
  end
  return id_of, task
end

-- Gives an instance what waits for it, as long as it has room; returns the ids. Its inbox must be
-- declared.
local function pull(to, limit)
  local given = {}
  local is = slot_of(to)
  if not is or not inbox[to] or not alive(to) then return given end
  while #given < limit and is.assigned < is.capacity do
    local id, task = next_for(is)
    if not id then break end
    unqueue(id, task)
    is.assigned = is.assigned + 1
    give(id, task, to)
    given[#given + 1] = id
  end
  return given
end

-- Plans where a part of what an instance holds goes, the most urgent first. With `lost`, what has
-- had its last attempt goes nowhere.
local function plan_release(holder, lost)
  local plan = {}
  for _, member in ipairs(under(K.held, holder, 'LIMIT', 0, CHUNK)) do
    local id = string.sub(member, #holder + 2)
    local task = task_of(id)
    if task then
      plan[#plan + 1] = { id = id, task = task }
    else
      redis.call('ZREM', K.held, member)
    end
  end
  table.sort(plan, function(a, b) return a.task.order < b.task.order end)
  for _, step in ipairs(plan) do
    step.fails = lost and step.task.attempt >= step.task.max_attempts
    step.to = not step.fails and pick(step.task, holder) or nil
  end
  return plan
end

-- Does what was planned; returns how many tasks went to others or wait for them.
local function release(plan, lost)
  local reassigned = 0
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
