-- Stores the event of a tick and moves its schedule on, in one step: so there is one event for each tick, however
-- many call this and whoever dies.
--
-- Only if the tick is the one that comes next, by a definition that is still the present one, and is due by the
-- server's clock. What can fail comes before the first write, or is that write.
--
-- KEYS  1 schedules  2 their events  3 their states  4 when they are due  5 broadcast
--       6 the events stream, or the outbox of this slot if that lies in another slot; if an event is stored
-- ARGV  1 name  2 definition, as the caller read it  3 the tick that comes next
--       4 the tick after what is done here, or ''  5 when that is due; or until when the schedule is kept
--       6 the fact about ticks that are left out (MessagePack map), or ''  7 who calls
--       8 the tick that is stored  9 when that was due  10 the event's id
--       11 the stream that the outbox moves it to, or '': if an event is stored
-- Returns {done, the id of what was stored, or ''}; what an outbox holds gets another one where it is moved to. Called
--       again it changes nothing.
-- Cost  O(log n + fields)
local name = ARGV[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = tonumber(redis.call('ZSCORE', KEYS[4], name) or 'inf')
if due > now or redis.call('HGET', KEYS[1], name) ~= ARGV[2] then return {0, ''} end
local state = decoded(redis.call('HGET', KEYS[3], name))
if not state or not state.tick or state.tick ~= tonumber(ARGV[3]) then return {0, ''} end

local entry = ''
if KEYS[6] then
  if tonumber(ARGV[9]) > now then return {0, ''} end
  local words = decoded(redis.call('HGET', KEYS[2], name))
  if not words then return redis.error_reply('ERR the event of schedule ' .. name .. ' is gone') end
  local to = ARGV[11] ~= '' and ARGV[11]
  if to then
    words[#words + 1] = '@stream'
    words[#words + 1] = to
  end
  for _, word in ipairs({'id', ARGV[10], 'source', ARGV[7], 'time', string.format('%.0f', now)}) do
    words[#words + 1] = word
  end
  entry = redis.pcall('XADD', KEYS[6], '*', unpack(words, 2))
  if type(entry) == 'table' and entry.err then return entry end
  state.last = {tick = tonumber(ARGV[8]), entry = not to and entry or nil, at = now, stream = to or KEYS[6]}
  state.stored = (tonumber(state.stored) or 0) + 1
end
state.tick = tonumber(ARGV[4])
local told = ARGV[6] ~= '' and cmsgpack.unpack(ARGV[6])
if told then state.left_out = (tonumber(state.left_out) or 0) + told.count end
redis.call('HSET', KEYS[3], name, cmsgpack.pack(state))
redis.call('ZADD', KEYS[4], ARGV[5], name)
if told then
  redis.pcall('XADD', KEYS[5], '*', 'type', 'schedule.missed', 'source', ARGV[7], 'time', now, 'data', ARGV[6])
end
return {1, entry}
