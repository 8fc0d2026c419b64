#!lua
-- Creates a task with its fact and, where someone is free, assigns it, in one step. The same call again
-- changes nothing and answers how the task is now.
--
-- KEYS  1–14 those of tasks.lua  15… the inboxes of ARGV[8], in its order
-- ARGV  1 task id  2 kind  3 role  4 required capabilities, sorted words  5 priority
--       6 the most attempts  7 payload (MessagePack)  8 the instances whose inboxes are declared
--       9 the most tasks that may wait  10 the most bytes of their payloads
-- Returns {outcome, status, holder, inboxes}. Outcome `again`: nothing was changed; call again with
--       the inboxes named as well. `created`. `exists`: it was there, and was created with
--       the same, whatever was changed since. `differs`: another task of that id is there. `many`, `much`: too many tasks wait, or too many bytes; nothing
--       was changed.
-- Cost  O(looks of tasks.lua * log n) for n instances and tasks. Refused when memory is full.
open(1, ARGV[8])
local id = ARGV[1]
local task = task_of(id)
if task then
  local same
  if task.made then
    same = task.made == made_of(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
  else
    same = task.kind == ARGV[2] and task.role == ARGV[3] and task.requires == ARGV[4]
      and task.priority == tonumber(ARGV[5]) and task.max_attempts == tonumber(ARGV[6])
      and redis.call('HGET', K.data, id) == ARGV[7]
  end
  local holder = task.status == 'assigned' and task.holder or ''
  return { same and 'exists' or 'differs', task.status, holder, '' }
end
task = { kind = ARGV[2], role = ARGV[3], requires = ARGV[4], priority = tonumber(ARGV[5]),
  max_attempts = tonumber(ARGV[6]), attempt = 0, created_at = now, bytes = #ARGV[7] }
local serial = tonumber(redis.call('HGET', K.counts, 'seq') or 0) + 1
task.order = string.format('%03d%014.0f', 100 - task.priority, serial)
local to = seat(task)
local names = missing()
if names then return { 'again', '', '', names } end
-- Those that were called up make room.
if not to then
  local bytes = tonumber(redis.call('HGET', K.counts, 'waiting') or 0) - moved
  if redis.call('ZCARD', K.queue) - #planned >= tonumber(ARGV[9]) then return { 'many', '', '', '' } end
  if bytes + task.bytes > tonumber(ARGV[10]) then return { 'much', '', '', '' } end
end
redis.call('HINCRBY', K.counts, 'seq', 1)
redis.call('HSET', K.data, id, ARGV[7])
tell('created', { task_id = id, kind = task.kind, role = task.role, priority = task.priority })
serve()
if to then give(id, task, to) else enqueue(id, task) end
save_slots()
return { 'created', task.status, to or '', '' }
