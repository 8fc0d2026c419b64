#!lua
-- Changes a task that waits, and assigns it where someone can take it as it is now, in one step. The same
-- call again changes nothing and answers how the task is now.
--
-- KEYS  1–14 those of tasks.lua  15… the inboxes of ARGV[3], in its order
-- ARGV  1 task id  2 the id of the event that asks, or ''  3 the instances whose inboxes are declared
--       4 the priority, or ''  5 `1` if the requirements change  6 to these, sorted words
--       7 the payload (MessagePack), or ''  8 the metadata (MessagePack), or ''
--       9 the most bytes of payloads and metadata that may wait
-- Returns {outcome, status, holder, fence, inboxes}. Outcome `again`: nothing was changed; call again with
--       the inboxes named as well. `placed`: it is as told. `not_found`. `held`: an instance holds it.
--       `ended`: it has ended, as told. `much`: more bytes would wait than may; nothing was changed.
-- Cost  O(looks of tasks.lua * log n). Refused when memory is full.
--
-- It keeps its age: of those of its new priority it comes where it would have come from the beginning.
local id = ARGV[1]
open(1, ARGV[3])
local task = task_of(id)
if not task then return { 'not_found', '', '', 0, '' } end
if was_asked(task, 'update', ARGV[2], unpack(ARGV, 4, 8)) then return placed(task) end
if task.status == 'assigned' then return { 'held', '', task.holder, 0, '' } end
if task.status ~= 'pending' then return { 'ended', task.status, '', 0, '' } end

local new = {}
for name, value in pairs(task) do new[name] = value end
-- The same creation again is known by what it was created with.
new.made = task.made or made_of(task.kind, task.role, task.requires, task.priority, task.max_attempts,
  payload_of(id))
local payload = ARGV[7] ~= '' and ARGV[7] or payload_of(id)
if ARGV[8] ~= '' then new.metadata = #ARGV[8] end
new.bytes = #payload + (new.metadata or 0)
if ARGV[4] ~= '' then new.priority = tonumber(ARGV[4]) end
if ARGV[5] == '1' then new.requires = ARGV[6] end
new.order = string.format('%03d', 100 - new.priority) .. string.sub(task.order, 4)

-- Where it stood it is in nobody's way.
aside = id
local to = seat(new)
local names = missing()
if names then return { 'again', '', '', 0, names } end
local more = new.bytes - (task.bytes or 0)
if not to and more > 0 then
  local bytes = tonumber(redis.call('HGET', K.counts, 'waiting') or 0) - moved
  if bytes + more > tonumber(ARGV[9]) then return { 'much', '', '', 0, '' } end
end
unqueue(id, task)
aside = nil
redis.call('HSET', K.data, id, payload)
if ARGV[8] ~= '' then redis.call('HSET', K.data, id .. ' metadata', ARGV[8]) end
serve()
if to then give(id, new, to) else enqueue(id, new) end
save_slots()
return placed(new)
