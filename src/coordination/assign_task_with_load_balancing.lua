#!lua
-- Assigns the tasks at the heads of the lanes to the instances of the lowest load that can take
-- them, one of each lane; and forgets finished tasks that are over a bound. Wherever room or a task
-- appears the scripts there assign in the same step: this one finds what their look-ahead missed.
--
-- KEYS  1–13 those of tasks.lua  14… the inboxes of ARGV[1], in its order
-- ARGV  1 the instances whose inboxes are declared  2 the head behind which to begin, or ''
-- Returns {again, inboxes, assigned ids, next head}. again = 1: nothing was changed; call again with
--       the inboxes named as well. Next head is '' behind the last.
-- Cost  O(64 * (look-ahead of tasks.lua) * log n); O(1) if nothing waits. Refused when memory is full.
open(1, ARGV[1])
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local heads = redis.call('ZRANGEBYLEX', K.heads, from, '+', 'LIMIT', 0, LANES)
local plan = {}
for _, head in ipairs(heads) do
  local id = string.match(head, '(%S+)$')
  local task = task_of(id)
  local to = task and pick(task)
  if to then plan[#plan + 1] = { id = id, task = task, to = to } end
end
local names = missing()
if names then return { 1, names, {}, '' } end
local assigned = {}
for i, step in ipairs(plan) do
  unqueue(step.id, step.task)
  give(step.id, step.task, step.to)
  assigned[i] = step.id
end
save_slots()
evict()
return { 0, '', assigned, #heads == LANES and heads[LANES] or '' }
