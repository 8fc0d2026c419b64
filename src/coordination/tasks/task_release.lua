#!lua flags=allow-oom
-- Takes what an instance holds from it, as lost, in parts: for a process that starts again under the
-- id. Each part goes in one step to others, to those that wait, or to its end. The instance gets
-- nothing from the first part on until it registers.
--
-- KEYS  1 the instance's hash  2–15 those of tasks.lua  16… the inboxes of ARGV[3], in its order
-- ARGV  1 instance id  2 the process that starts, or '': once it has registered, nothing is changed
--       3 the instances whose inboxes are declared
-- Returns {again, reassigned, inboxes}. again = 1: nothing was changed; call again with the inboxes
--       named as well. again = 2: a part is done; call again for the next.
-- Cost  O((part + looks of tasks.lua) * log n).
local id = ARGV[1]
-- A call that arrives after it: what the id holds is of that process.
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'process') == ARGV[2] then return { 0, 0, '' } end
open(2, ARGV[3])
local plan = plan_release(id, true)
local names = missing()
if names then return { 1, 0, names } end
local reassigned = release(plan, true)
local is = slot_of(id)
if is and #plan > 0 then is.capacity = 0 end
save_slots()
return { holds(id) > 0 and 2 or 0, reassigned, '' }
