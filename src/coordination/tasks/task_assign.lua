#!lua
-- Gives a task that waits, or that another one holds, to the instance that somebody names, in one step
-- with the fact if another one held it; and gives that one what waits for it. The same call again changes
-- nothing and answers how the task is now.
--
-- KEYS  1–14 those of tasks.lua  15 the inbox of ARGV[2]  16 that of ARGV[4], if that is not ''
-- ARGV  1 task id  2 the instance  3 the id of the event that asks, or ''  4 who else's inbox is declared
-- Returns {outcome, status, holder, fence, why}. Outcome `again`: nothing was changed; call again with the
--       inbox of the holder. `placed`: it is as told. `not_found`. `ended`: as told. `unfit`: the instance
--       cannot take it; why is `inactive`, `role`, `inbox`, `leaves`, `full`, or the capability that it
--       lacks. Nothing was changed.
-- Cost  O(looks of tasks.lua * log n). Refused when memory is full.
--
-- It goes past whatever waits: that is what was asked for. Neither room nor capabilities are passed over.
local id, to = ARGV[1], ARGV[2]
open(1, to .. ' ' .. ARGV[4])
local task = task_of(id)
if not task then return { 'not_found', '', '', 0, '' } end
local holder = task.status == 'assigned' and task.holder
if was_asked(task, 'assign', ARGV[3], to) then return placed(task) end
if holder == to then
  note_asked(id, task, ARGV[3])
  return placed(task)
end
if not holder and task.status ~= 'pending' then return { 'ended', task.status, '', 0, '' } end

local is = slot_of(to)
local function lacks()
  if not is or not alive(to) then return 'inactive' end
  if not in_role(is, task.role) then return 'role' end
  if not is.any and not names(is, task.kind) then return task.kind end
  for kind in words(task.requires) do
    if is.any or not names(is, kind) then return kind end
  end
  if is.capacity == 0 then return 'leaves' end
  if is.assigned >= is.capacity then return 'full' end
  if not inbox[to] and not is.claims then return 'inbox' end
end
local why = lacks()
if why then return { 'unfit', task.status, '', is and is.capacity or 0, why } end
if holder and inbox[holder] == nil then return { 'again', '', holder, 0, '' } end

if holder then take_away(id, task) else unqueue(id, task) end
is.assigned = is.assigned + 1
give(id, task, to)
if holder then pull(holder, FEW) end
save_slots()
return placed(task)
