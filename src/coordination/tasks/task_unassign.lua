#!lua
-- Takes a task from its holder by somebody's word, in one step with the fact: it goes to another instance
-- if one is free, else it waits; and the holder gets what else waits for it. The same call again changes
-- nothing and answers how the task is now.
--
-- KEYS  1–14 those of tasks.lua  15… the inboxes of ARGV[3], in its order
-- ARGV  1 task id  2 the id of the event that asks, or ''  3 the instances whose inboxes are declared
-- Returns {outcome, status, holder, fence, inboxes}. Outcome `again`: nothing was changed; call again with
--       the inboxes named as well. `placed`: it is as told; of one that waited nothing was changed.
--       `not_found`. `ended`: it has ended, as told.
-- Cost  O(looks of tasks.lua * log n). Refused when memory is full.
--
-- Its holder does not get it again in this step. Where nobody else can take it, the next look at what
-- waits may give it back, under a higher fence.
local id = ARGV[1]
open(1, ARGV[3])
local task = task_of(id)
if not task then return { 'not_found', '', '', 0, '' } end
local holder = task.status == 'assigned' and task.holder
if was_asked(task, 'unassign', ARGV[2]) then return placed(task) end
if task.status == 'pending' then
  note_asked(id, task, ARGV[2])
  return placed(task)
end
if not holder then return { 'ended', task.status, '', 0, '' } end
local to = seat(task, holder)
local names = missing()
if inbox[holder] == nil then names = holder .. ' ' .. (names or '') end
if names then return { 'again', '', '', 0, names } end

take_away(id, task)
serve()
if to then give(id, task, to) end
pull(holder, FEW)
if not to then enqueue(id, task) end
save_slots()
return placed(task)
