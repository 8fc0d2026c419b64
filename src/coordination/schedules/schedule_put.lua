-- Puts a schedule, or replaces one, in one step with the fact.
--
-- The tick that comes next stays as it is where nothing changes that says when it ticks, so a tick that is due while
-- somebody puts another payload is not lost. A tick that was stored is never the next one again.
--
-- KEYS  1 schedules  2 their events  3 their states  4 when they are due  5 broadcast
-- ARGV  1 name  2 definition (MessagePack map)  3 event (as a member of a delay queue)  4 who puts it
--       5 the next tick, or '' (paused, or none)  6 when that is due, or ''  7 how many there may be
--       8 the version that this replaces, or ''
-- Returns {state, number}: 1 and the version; 0 and the last tick, where the next one given is not after it;
--       2 and the version, where that is another one; 3: there are as many as there may be. Only 1 changed
--       something, unless the same is there already.
-- Cost  O(log n)
local name, definition, event = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local kept = redis.call('HGET', KEYS[1], name)
local before = decoded(kept)
local state = decoded(redis.call('HGET', KEYS[3], name)) or {}
local version = tonumber(state.version) or 0
if kept == definition and redis.call('HGET', KEYS[2], name) == event then return {1, version} end
if ARGV[8] ~= '' and tonumber(ARGV[8]) ~= version then return {2, version} end
if not kept and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[7]) then return {3, version} end

local after = cmsgpack.unpack(definition)
local function same(field)
  return before and before[field] == after[field]
end
local due = redis.call('ZSCORE', KEYS[4], name)
local stays = state.tick and due and same('cron') and same('every_ms') and same('at') and same('time_zone')
  and same('jitter_ms') and same('paused')
local last = state.last and tonumber(state.last.tick)
if not stays then
  local tick = tonumber(ARGV[5])
  if tick and last and tick <= last then return {0, last} end
  state.tick, due = tick, ARGV[6]
  -- No tick comes any more: it is kept for a day.
  if not tick and not after.paused then due = string.format('%.0f', now + 86400000) end
end
state.version = version + 1
state.by, state.changed = ARGV[4], now
redis.call('HSET', KEYS[1], name, definition)
redis.call('HSET', KEYS[2], name, event)
redis.call('HSET', KEYS[3], name, cmsgpack.pack(state))
if due ~= '' then
  redis.call('ZADD', KEYS[4], due, name)
else
  redis.call('ZREM', KEYS[4], name)
end
redis.call('XADD', KEYS[5], '*', 'type', 'schedule.changed', 'source', ARGV[4], 'time', now, 'data',
  cmsgpack.pack({name = name, change = 'put', version = version + 1, by = ARGV[4], before = before, after = after}))
return {1, version + 1}
