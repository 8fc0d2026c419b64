#!lua
-- Gives an instance that asks for work what it holds and was never told, and then what waits for it, the
-- most urgent first, in one step. A claim of the same id again takes nothing more, and answers what the
-- first one did as far as the instance still holds that, for the last 8 claims.
--
-- KEYS  1 the instance's hash  2–15 those of tasks.lua
-- ARGV  1 instance  2 the claim's id  3 the most tasks  4 the only kinds of those that wait, or ''  5 the
--       most bytes of several payloads together
-- Returns {outcome, {{task id, kind, payload, fence, attempt}, …}}. Outcome `claimed`. `inactive`: it is not
--       registered, or past its expiry. `sealed`: it is a worker, and gets its tasks by its inbox.
-- Cost  O((looks of tasks.lua + tasks) * log n). Refused when memory is full.
--
-- From its first claim on nothing is sent to its inbox until it registers as a new incarnation. One whose
-- payload is large comes alone.
local CLAIMS = 8   -- claims of an instance that may be repeated
local AROUND = 512 -- bytes of a task in the answer besides its payload, at the most
local id, asked, most, bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
open(2, '')
local is = slot_of(id)
if not is or not alive(id) then return { 'inactive', {} } end
if redis.call('HGET', KEYS[1], 'sealed') == '1' then return { 'sealed', {} } end

local told, count, total = {}, 0, 0
local function add(task_id, task)
  told[count + 1] = { task_id, task.kind, payload_of(task_id), task.fence, task.attempt }
  count, total = count + 1, total + (task.bytes or 0) + AROUND
end
local function fits(task)
  return count < most and (count == 0 or total + (task.bytes or 0) + AROUND <= bytes)
end

local field = id .. ' claims'
local log = redis.call('HGET', K.data, field)
log = log and cmsgpack.unpack(log) or {}
for _, claim in ipairs(log) do
  if claim[1] == asked then
    for at = 2, #claim, 2 do
      local task = task_of(claim[at])
      if task and task.status == 'assigned' and task.holder == id and task.fence == claim[at + 1] then
        add(claim[at], task)
      end
    end
    return { 'claimed', told }
  end
end

is.claims = true
-- A space and what a name begins with: those behind a `*` were told.
for _, member in ipairs(redis.call('ZRANGEBYLEX', K.held, '[' .. id .. ' -', '(' .. id .. '!',
  'LIMIT', 0, most)) do
  local task_id = string.sub(member, #id + 2)
  local task = task_of(task_id)
  if task and not fits(task) then break end
  redis.call('ZREM', K.held, member)
  if task then
    redis.call('ZADD', K.held, 0, id .. ' *' .. task_id)
    add(task_id, task)
  end
end

only = ARGV[4] ~= '' and ARGV[4] or nil
while count < most and is.assigned < is.capacity do
  local lane = first_for(is)
  if not lane or not fits(lane.task) then break end
  local task_id, task = lane.id, lane.task
  advance(lane)
  is.assigned = is.assigned + 1
  unqueue(task_id, task)
  hand(task_id, task, id, true)
  add(task_id, task)
end

local claim = { asked }
for _, one in ipairs(told) do
  claim[#claim + 1], claim[#claim + 2] = one[1], one[4]
end
log[#log + 1] = claim
while #log > CLAIMS do table.remove(log, 1) end
redis.call('HSET', K.data, field, cmsgpack.pack(log))
save_slots()
return { 'claimed', told }
