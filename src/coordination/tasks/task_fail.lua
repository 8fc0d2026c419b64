#!lua
-- Takes a failed task from its holder: to another instance, to those that wait, or to its end, with
-- the fact if that is so; and gives the holder what waits for it. In one step. The same call again
-- changes nothing and answers the same, whatever became of the task since, for the last 8 attempts.
--
-- KEYS  1–14 those of tasks.lua  15 the inbox of ARGV[2]  16… the inboxes of ARGV[6], in its order
-- ARGV  1 task id  2 the instance that ran it  3 its fence  4 what went wrong  5 `1` if it may be
--       tried again  6 the other instances whose inboxes are declared
-- Returns {outcome, status, holder, fence, inboxes}. Outcome `again`: nothing was changed; call
--       again with the inboxes named as well. `failed`: this attempt; status says what became of the
--       task. `not_found`. `aborted`: it is not that instance's under that fence, but as told.
-- Cost  O((looks of tasks.lua + roles) * log n). Refused when memory is full.
--
-- It goes to another instance if one is free, else to the same again if that is free.
local REPEATED = 8 -- last attempts whose reports may be repeated
local id, instance, with = ARGV[1], ARGV[2], tonumber(ARGV[3])
open(1, instance .. ' ' .. ARGV[6])
local task = task_of(id)
if not task then return { 'not_found', '', '', 0, '' } end
-- One for each of the last attempts: a record stays short.
local failures = task.failures or {}
for _, failure in ipairs(failures) do
  if failure[1] == with and failure[2] == instance then return { 'failed', failure[3], '', 0, '' } end
end
if task.status ~= 'assigned' or task.holder ~= instance or task.fence ~= with then
  return { 'aborted', task.status, task.holder or '', task.fence or 0, '' }
end
local again = ARGV[5] == '1' and task.attempt < task.max_attempts
local to = again and seat(task, instance) or nil
local names = missing()
if names then return { 'again', '', '', 0, names } end

let_go(id, task)
task.error, task.failures = ARGV[4], failures
local failure = { with, instance, to and 'assigned' or again and 'pending' or 'failed' }
failures[#failures + 1] = failure
while #failures > REPEATED do table.remove(failures, 1) end
serve()
if not again then
  finish(id, task, 'failed')
elseif to then
  give(id, task, to)
else
  enqueue(id, task)
end
pull(instance, FEW)
local is = task_of(id)
if is and is.status ~= failure[3] then
  -- Its holder got it again.
  failure[3], is.failures = is.status, failures
  save_task(id, is)
end
save_slots()
return { 'failed', failure[3], '', 0, '' }
