-- Puts a repair, in one step with the fact.
--
-- What ended longest ago makes room where there are as many as there may be; so does what a terminal began that is gone.
--
-- KEYS  1 plans  2 states  3 broadcast
-- ARGV  1 name  2 plan (MessagePack map)  3 who asks  4 why  5 how many entries it is about, or ''  6 how many may be
--       7 1: a terminal does it, no worker
-- Returns 1: it runs, now or before; 2: another one of that name is there; 3: there are as many as there may be, and none
--       of them has ended; 4: the same one has ended.
-- Cost  O(repairs), where there are as many as there may be; else O(1)
local name, plan = ARGV[1], ARGV[2]
local kept = redis.call('HGET', KEYS[1], name)
if kept then
  if kept ~= plan then return 2 end
  local state = decoded(redis.call('HGET', KEYS[2], name))
  return state and state.state == 'running' and 1 or 4
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[6]) then
  local oldest, ended
  local all = redis.call('HGETALL', KEYS[2])
  for at = 1, #all, 2 do
    local state = decoded(all[at + 1])
    local when = not state and 0 or tonumber(state.ended)
    if not when and state.terminal and (tonumber(state['until']) or 0) <= now then when = tonumber(state.at) end
    if when and (not ended or when < ended) then oldest, ended = all[at], when end
  end
  if not oldest then return 3 end
  redis.call('HDEL', KEYS[1], oldest)
  redis.call('HDEL', KEYS[2], oldest)
end
local total = tonumber(ARGV[5])
redis.call('HSET', KEYS[1], name, plan)
redis.call('HSET', KEYS[2], name, cmsgpack.pack({state = 'running', by = ARGV[3], why = ARGV[4], at = now, fence = 0,
  total = total, terminal = ARGV[7] == '1' or nil}))
redis.call('XADD', KEYS[3], '*', 'type', 'repair.changed', 'source', ARGV[3], 'time', string.format('%.0f', now), 'data',
  cmsgpack.pack({name = name, change = 'started', by = ARGV[3], why = ARGV[4], total = total}))
return 1
