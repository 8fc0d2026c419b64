#!lua flags=allow-oom
-- Cancels a task that waits or that somebody holds, with the fact, and gives its holder what waits for
-- it, in one step. The same call again changes nothing and answers the same.
--
-- KEYS  1–14 those of tasks.lua  15 the inbox of ARGV[2], if that is not ''
-- ARGV  1 task id  2 the instance whose inbox is declared, or ''  3 why, or ''
-- Returns {outcome, status, holder}. Outcome `again`: nothing was changed; call again with the inbox of
--       the holder. `cancelled`. `not_found`. `ended`: it was completed or has failed, as told.
-- Cost  O(looks of tasks.lua * log n). Passes when memory is full: it adds one fact, and what it gives
--       on is few.
local id = ARGV[1]
open(1, ARGV[2])
local task = task_of(id)
if not task then return { 'not_found', '', '' } end
if task.status == 'cancelled' then return { 'cancelled', '', '' } end
local holder = task.status == 'assigned' and task.holder
if not holder and task.status ~= 'pending' then return { 'ended', task.status, '' } end
if holder and inbox[holder] == nil then return { 'again', '', holder } end

if holder then let_go(id, task) else unqueue(id, task) end
task.reason = ARGV[3] ~= '' and ARGV[3] or nil
finish(id, task, 'cancelled')
if holder then pull(holder, FEW) end
save_slots()
return { 'cancelled', '', '' }
