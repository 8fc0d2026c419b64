#!lua flags=allow-oom
-- Gives an instance no more tasks until it registers again. It keeps and may complete what it holds.
--
-- KEYS  1–14 those of tasks.lua
-- ARGV  1 instance id
-- Returns nothing.
-- Cost  O(roles * log n).
open(1, '')
local is = slot_of(ARGV[1])
if is then is.capacity = 0 end
save_slots()
