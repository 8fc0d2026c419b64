#!lua
-- Has a worker take what waits for it into its inbox, the most urgent first, in one step; and notes whether it
-- takes its work by itself from now on, or is given it.
--
-- KEYS  1 the worker's hash  2–15 those of tasks.lua  16 its inbox
-- ARGV  1 the worker  2 its process  3 the most tasks  4 `1`: it takes its work by itself; `0`: it is given it
-- Returns {outcome, task ids, room left}. Outcome `pulled`. `inactive`: it is not registered, or past its
--       expiry; `other`: another process has the id. Then nothing was changed.
-- Cost  O((looks of tasks.lua + tasks) * log n); O(1) if nothing waits. Refused when memory is full.
--
-- What it takes is an assignment like any other, with a fence, and is told by an entry in its inbox. So an answer
-- that is lost loses nothing.
local id = ARGV[1]
open(2, id)
local is = slot_of(id)
if not is or not alive(id) then return { 'inactive', {}, 0 } end
if redis.call('HGET', KEYS[1], 'process') ~= ARGV[2] then return { 'other', {}, 0 } end
-- Else it could be given nothing. A worker never claims: an earlier version may have read it so.
is.pulls, is.claims = false, false
local ids = pull(id, tonumber(ARGV[3]))
is.pulls = ARGV[4] == '1'
save_slots()
return { 'pulled', ids, math.max(is.capacity - is.assigned, 0) }
