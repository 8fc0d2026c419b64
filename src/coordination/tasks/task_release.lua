#!lua flags=allow-oom
-- Takes what an instance holds from it, as lost, in parts: for a process that starts again under the
-- id. Each part goes in one step to others, to those that wait, or to its end. The instance gets
-- nothing from the first part on until it registers.
--
-- KEYS  1–14 those of tasks.lua  15… the inboxes of ARGV[2], in its order
-- ARGV  1 instance id  2 the instances whose inboxes are declared
-- Returns {again, reassigned, inboxes}. again = 1: nothing was changed; call again with the inboxes
--       named as well. again = 2: a part is done; call again for the next.
-- Cost  O((part + looks of tasks.lua) * log n).
local id = ARGV[1]
open(1, ARGV[2])
local plan = plan_release(id, true)
local names = missing()
if names then return { 1, 0, names } end
local reassigned = release(plan, true)
local is = slot_of(id)
if is and #plan > 0 then is.capacity = 0 end
save_slots()
return { holds(id) > 0 and 2 or 0, reassigned, '' }
