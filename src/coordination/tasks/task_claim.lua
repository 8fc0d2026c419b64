#!lua
-- Gives an instance that asks for work what it holds and was never told, and then what waits for it, the
-- most urgent first, in one step. The same id again, of a claim that took something, takes nothing more, and
-- answers what the first one did as far as the instance still holds that: as long as it holds any of it, and
-- for the last 8 claims that took something.
--
-- KEYS  1 the instance's hash  2–15 those of tasks.lua
-- ARGV  1 instance  2 the claim's id  3 the most tasks  4 the only kinds of those that wait, or ''  5 the
--       most bytes of several payloads together  6 the instance's incarnation, or ''  7 `1`: it takes
--       nothing, and is told what it holds, also what a claim was answered with
-- Returns {outcome, {{task id, kind, payload, fence, attempt}, …}}. Outcome `claimed`. `inactive`: it is not
--       registered, or past its expiry. `other`: it is another incarnation. `sealed`: it is a worker, and
--       gets its tasks by its inbox. `many`: it holds tasks of 64 claims before the last 8, and there is
--       more for it; none was taken.
-- Cost  O((looks of tasks.lua + tasks) * log n). Refused when memory is full.
--
-- From its first claim on nothing is sent to its inbox until it registers as a new incarnation. One whose
-- payload is large comes alone.
local CLAIMS = 8   -- last claims that took something and may be repeated, whatever became of the tasks
local MOST = 64    -- claims before those, of all of which it holds something
local SEEN = 100   -- tasks of older claims that one call looks at, to forget those claims
local AROUND = 512 -- bytes of a task in the answer besides its payload, at the most
local id, asked, most, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
open(2, '')
local is = slot_of(id)
if not is or not alive(id) then return { 'inactive', {} } end
local as = redis.call('HMGET', KEYS[1], 'sealed', 'incarnation')
if as[1] == '1' then return { 'sealed', {} } end
if ARGV[6] ~= '' and as[2] ~= ARGV[6] then return { 'other', {} } end

local told, count, total = {}, 0, 0
local function add(task_id, task)
  told[count + 1] = { task_id, task.kind, payload_of(task_id), task.fence, task.attempt }
  count, total = count + 1, total + (task.bytes or 0) + AROUND
end
local function fits(task)
  return count < most and (count == 0 or total + (task.bytes or 0) + AROUND <= bytes)
end

-- The task, if the instance holds it under the fence that a claim was answered with.
local function still(task_id, with)
  local task = redis.call('HGET', K.tasks, task_id)
  task = task and cmsgpack.unpack(task)
  return task and task.status == 'assigned' and task.holder == id and task.fence == with and task
end

local field = id .. ' claims'
local log = redis.call('HGET', K.data, field)
log = log and cmsgpack.unpack(log) or {}
for _, claim in ipairs(log) do
  if claim[1] == asked then
    for at = 2, #claim, 2 do
      local task = still(claim[at], claim[at + 1])
      if task then add(claim[at], task) end
    end
    return { 'claimed', told }
  end
end

-- Drops those before the last of which the instance holds nothing any more: if nobody has the answer to
-- a claim, the same again must find what it took.
local seen = 0
local function forget()
  local kept = {}
  for at, claim in ipairs(log) do
    local old = at <= #log - CLAIMS
    while old and #claim > 1 and seen < SEEN do
      seen = seen + 1
      if still(claim[#claim - 1], claim[#claim]) then break end
      claim[#claim], claim[#claim - 1] = nil, nil
    end
    if not old or #claim > 1 then kept[#kept + 1] = claim end
  end
  log = kept
end

local function save_log()
  redis.call('HSET', K.data, field, cmsgpack.pack(log))
end

local function many()
  -- What was forgotten need not be looked at again.
  save_log()
  return { 'many', {} }
end

if #log >= MOST + CLAIMS then forget() end
local full = #log >= MOST + CLAIMS

is.claims = true
local again = ARGV[7] == '1'
-- A space and what a name begins with: those behind a `*` were told.
local first = again and ' ' or ' -'
for _, member in ipairs(redis.call('ZRANGEBYLEX', K.held, '[' .. id .. first, '(' .. id .. '!',
  'LIMIT', 0, most)) do
  local task_id = string.match(member, '([^ *]+)$')
  local task = task_of(task_id)
  if task and not fits(task) then break end
  if task and full and not again then return many() end
  redis.call('ZREM', K.held, member)
  if task then
    redis.call('ZADD', K.held, 0, id .. ' *' .. task_id)
    add(task_id, task)
  end
end

if again then
  save_slots()
  return { 'claimed', told }
end

only = ARGV[4] ~= '' and ARGV[4] or nil
while count < most and is.assigned < is.capacity do
  local lane = first_for(is)
  if not lane or not fits(lane.task) then break end
  if full then return many() end
  local task_id, task = lane.id, lane.task
  advance(lane)
  is.assigned = is.assigned + 1
  unqueue(task_id, task)
  hand(task_id, task, id, true)
  add(task_id, task)
end

-- What took nothing may as well take something when it runs again: only one answer is given.
if count > 0 then
  local claim = { asked }
  for _, one in ipairs(told) do
    claim[#claim + 1], claim[#claim + 2] = one[1], one[4]
  end
  log[#log + 1] = claim
  forget()
  save_log()
end
save_slots()
return { 'claimed', told }
