#!lua flags=allow-oom
-- Gives an instance no more tasks until it registers again. It keeps and may complete what it holds.
--
-- KEYS  1 the instance's hash  2–15 those of tasks.lua
-- ARGV  1 instance id  2 the process that speaks of itself, or '': where another one has the id since, nothing is changed
-- Returns nothing.
-- Cost  O(roles * log n).
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'process') ~= ARGV[2] then return end
open(2, '')
local is = slot_of(ARGV[1])
if is then is.capacity = 0 end
save_slots()
