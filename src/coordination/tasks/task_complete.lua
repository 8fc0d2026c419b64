#!lua
-- Completes a task with its result and what it published, and gives its holder what waits for it,
-- in one step with the fact. The same call again changes nothing and answers the same.
--
-- KEYS  1–14 those of tasks.lua  15 the inbox of ARGV[2]  16… the streams of the publications
-- ARGV  1 task id  2 the instance that ran it  3 its fence  4 result (MessagePack)
--       5… for each publication the number of its words, and the words
-- Returns {outcome, status, holder, fence, number}. Outcome `completed`. `not_found`. `aborted`: it
--       is not that instance's under that fence, but as told. `refused`: the key of the publication
--       of that number is no stream; nothing was changed.
-- Cost  O((looks of tasks.lua + roles + publications) * log n). Refused when memory is full.
local id, instance, with = ARGV[1], ARGV[2], tonumber(ARGV[3])
local first = open(1, instance)
local task = task_of(id)
if not task then return { 'not_found', '', '', 0, 0 } end
if task.holder ~= instance or task.fence ~= with
  or (task.status ~= 'assigned' and task.status ~= 'completed') then
  return { 'aborted', task.status, task.holder or '', task.fence or 0, 0 }
end
if task.status == 'completed' then return { 'completed', '', '', 0, 0 } end
for k = first, #KEYS do
  local kind = k > first and KEYS[k] == KEYS[k - 1] and 'stream' or redis.call('TYPE', KEYS[k]).ok
  if kind ~= 'stream' and kind ~= 'none' then return { 'refused', '', '', 0, k - first } end
end

let_go(id, task)
task.error = nil
finish(id, task, 'completed', ARGV[4])
local at = 5
for k = first, #KEYS do
  local count = tonumber(ARGV[at])
  redis.call('XADD', KEYS[k], '*', unpack(ARGV, at + 1, at + count))
  at = at + 1 + count
end
pull(instance, FEW)
save_slots()
return { 'completed', '', '', 0, 0 }
