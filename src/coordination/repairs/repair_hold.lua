#!lua flags=allow-oom
-- Takes the right to a repair that runs, keeps it, or gives it back.
--
-- KEYS  1 states
-- ARGV  1 name  2 who  3 the fence of the right that it has, or '': it takes one
--       4 for how long, in milliseconds; 0: it gives it back  5 what holds it up, or ''
-- Returns {state, fence}: 1 it has the right; 2 somebody else has; 0 it does not run.
-- Cost  O(1). Each taking raises the fence, so a right that was lost is known by it. Passes when memory is full.
local state = decoded(redis.call('HGET', KEYS[1], ARGV[1]))
if not state or state.state ~= 'running' then return {0, 0} end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local fence = tonumber(state.fence) or 0
if ARGV[3] == '' then
  local till = tonumber(state['until']) or 0
  -- What ends later than any lease from now on was given before the clock stepped back.
  local held = till > now and till <= now + tonumber(ARGV[4])
  if held and state.holder ~= ARGV[2] then return {2, fence} end
  fence = fence + 1
elseif tonumber(ARGV[3]) ~= fence or not state.holder and ARGV[4] ~= '0' then
  -- A call that arrives after it was given back does not take it again.
  return {2, fence}
end
state.fence, state.holder, state['until'] = fence, ARGV[2], now + tonumber(ARGV[4])
-- Who takes it does not know yet what held it up.
if ARGV[3] ~= '' then state.note = ARGV[5] ~= '' and ARGV[5] or nil end
if ARGV[4] == '0' then state.holder, state['until'] = nil, nil end
redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(state))
return {1, fence}
