#!lua flags=allow-oom
-- Renews a live instance, and counts what it did. Ends a suspicion of it and names the peers that it is
-- to watch. A sealed instance's own pulse also renews it past its expiry, until it was declared lost: see
-- `silence.rs`. No other one is brought back to life.
--
-- KEYS  1 instance hash  2 active  3 leader  4 suspects  5 what observers said of it
--       6 capabilities  7 last report of the process  8 totals by event type  9 external ones
--       10 the version of the state  11… the role sets of ARGV[9], in its order
-- ARGV  1 id  2 incarnation, or ''  3 the event type whose handlers watch each other
--       4 how many peers it watches at most  5 load, or ''  6 how it is now (MessagePack), or ''
--       7 the process that pulses by itself, or '': an event says so  8 the seal of what that process
--       registered, or '' (not compared)  9 the roles that it registered  10 the capabilities
--       11 until when that process waits for it, in ms, or '': run later, it says nothing of who lives
--       12 for how many ttls that process's own pulse lasts  13… what it did, if it reports: see `aggregate_global_metrics.lua`
-- Returns {state, ms that it lasts, leader, {peer, ms until its expiry, …}}. state:
--       0 not registered, expired, or another incarnation: nothing was changed
--       1 alive
--       2 alive, and not as it registered: somebody changed the hash, or took it out of a set
--       3 another process has the id since; what this one did is counted, nothing else was changed
--       4 sealed, and not its own process says so: nothing was changed
--       5 run too late: nothing was changed
-- Cost  O(peers * log n), and that of the report; for its own process O((roles + capabilities) * log n)
--       more.
--
-- The peers are the next ones in the ring of all that have a handler of that type, by their ids:
-- each is watched by as many as it watches, and no one more when an instance joins or leaves.
--
-- What an external instance reports is kept with it. Only what sealed ones do enters the totals.
--
-- It must pass when memory is full, or the whole fleet would expire just then. What grows by it is
-- bounded: a few fields of a hash that registration made, and what a report keeps. Registration
-- itself is refused when memory is full.
local id, process, seal = ARGV[1], ARGV[7], ARGV[8]
local own = process ~= ''
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if own and now > tonumber(ARGV[11] ~= '' and ARGV[11] or now) then return {5, 0, false, {}} end

local leads = redis.call('HMGET', KEYS[3], 'id', 'until')
local leader = leads[1]
local expiries = redis.call('ZMSCORE', KEYS[2], id, leader or id)
if leader and (tonumber(leads[2] or 0) <= now or tonumber(expiries[2] or 0) <= now) then
  leader = false
end

local is = redis.call('HMGET', KEYS[1], 'status', 'incarnation', 'ttl_ms', 'sealed', 'process', 'roles',
  'capabilities', 'capacity', 'metadata', 'load', 'lease_ms')
local sealed = is[1] == 'active' and is[4] == '1' and expiries[1]
if sealed and not own then return {4, 0, leader, {}} end
if sealed and is[5] ~= process then
  if ARGV[13] then aggregate(KEYS[7], KEYS[8], 13) end
  return {3, 0, leader, {}}
end
if is[1] ~= 'active' or not expiries[1] or (ARGV[2] ~= '' and ARGV[2] ~= is[2])
  or (own and not sealed) or (not own and tonumber(expiries[1]) <= now) then
  return {0, 0, leader, {}}
end
local ttl = tonumber(is[3])
local lease = own and ttl * tonumber(ARGV[12]) or ttl
redis.call('ZADD', KEYS[2], 'XX', now + lease, id)
if not own then redis.call('ZADD', KEYS[9], now + ttl, id) end
local how = {'last_seen', now}
if ARGV[5] ~= '' then how[3], how[4] = 'load', ARGV[5] end
-- Who brings expiries back into reach after the clock went back has to know it.
if lease ~= tonumber(is[11] or ttl) then
  how[#how + 1] = 'lease_ms'
  how[#how + 1] = lease
end
if ARGV[13] then
  local n = #how
  how[n + 1], how[n + 2], how[n + 3], how[n + 4] = 'metrics', ARGV[6], 'reported_at', now
  if own then
    aggregate(KEYS[7], KEYS[8], 13)
  else
    how[n + 5], how[n + 6] = 'did', ARGV[17]
  end
end
redis.call('HSET', KEYS[1], unpack(how))
-- What was said before this pulse is refuted by it.
local suspect = redis.call('ZREM', KEYS[4], id) == 1
if suspect then redis.call('DEL', KEYS[5]) end
-- That it was seen again is no change by itself.
if suspect or tonumber(expiries[1]) <= now or (ARGV[5] ~= '' and ARGV[5] ~= is[10]) then
  raise_version(KEYS[10], clock[1] * 1000000 + clock[2])
end

local function as_registered()
  if redis.sha1hex(table.concat({is[6] or '', is[7] or '', is[8] or '', is[9] or ''}, '\n')) ~= seal then return false end
  local at = 10
  for _ in string.gmatch(ARGV[9], '%S+') do
    at = at + 1
    if redis.call('SISMEMBER', KEYS[at], id) == 0 then return false end
  end
  local kinds = {}
  for kind in string.gmatch(ARGV[10], '%S+') do kinds[#kinds + 1] = kind .. ' ' .. id end
  if #kinds > 0 then
    for _, there in ipairs(redis.call('ZMSCORE', KEYS[6], unpack(kinds))) do
      if not there then return false end
    end
  end
  return true
end
local state = 1
if seal ~= '' and not as_registered() then state = 2 end

local prefix, wanted = ARGV[3] .. ' ', tonumber(ARGV[4])
local peers = {}
local function watch(from, to)
  local most = wanted - #peers
  local found = redis.call('ZRANGEBYLEX', KEYS[6], from, to, 'LIMIT', 0, most)
  for _, member in ipairs(found) do peers[#peers + 1] = string.sub(member, #prefix + 1) end
end
-- '!' follows the space.
watch('(' .. prefix .. id, '(' .. ARGV[3] .. '!')
if #peers < wanted then watch('[' .. prefix, '(' .. prefix .. id) end
local watched = {}
if #peers > 0 then
  for i, expires in ipairs(redis.call('ZMSCORE', KEYS[2], unpack(peers))) do
    watched[2 * i - 1] = peers[i]
    watched[2 * i] = math.max(tonumber(expires or 0) - now, 0)
  end
end
return {state, lease, leader, watched}
