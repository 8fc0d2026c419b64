#!lua flags=allow-oom
-- Ends a repair, in one step with the fact.
--
-- KEYS  1 states  2 broadcast
-- ARGV  1 name  2 'finished' or 'cancelled'  3 the fence of the right to it; '': whoever has it loses it  4 who ends it
-- Returns {state, fence}: 1 it has ended like that, now or before; 2 somebody else has the right; 3 it has ended in another
--       way; 0 it is not there.
-- Cost  O(1). Passes when memory is full.
local state = decoded(redis.call('HGET', KEYS[1], ARGV[1]))
if not state then return {0, 0} end
local fence = tonumber(state.fence) or 0
if state.state ~= 'running' then return {state.state == ARGV[2] and 1 or 3, fence} end
if ARGV[3] == '' then
  fence = fence + 1
elseif tonumber(ARGV[3]) ~= fence then
  return {2, fence}
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
state.state, state.ended, state.ended_by, state.fence = ARGV[2], now, ARGV[4], fence
state.holder, state['until'], state.note = nil, nil, nil
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(state))
redis.call('XADD', KEYS[2], '*', 'type', 'repair.changed', 'source', ARGV[4], 'time', string.format('%.0f', now), 'data',
  cmsgpack.pack({name = ARGV[1], change = ARGV[2], by = ARGV[4]}))
return {1, fence}
