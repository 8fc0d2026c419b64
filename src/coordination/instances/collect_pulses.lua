#!lua flags=allow-oom
-- Writes the pulses that workers sent to a collector, in one step.
--
-- KEYS  1 active  2 suspects  3 the version of the state  then for each pulse, in the order of ARGV: the worker's
--       hash, and what observers said of it
-- ARGV  for each pulse: the worker, its incarnation, its process, when it was sent (ms), its load or ''
-- Returns how many of them counted.
-- Cost  O(pulses * log n). Passes when memory is full: it adds to no key but two fields of a hash.
--
-- A pulse counts from when it was sent, by the server's clock: one that is written late keeps nobody alive for
-- longer than it would have in time. It revives nobody whose lease is over, and is the word of a sealed instance's
-- own process only.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local counted, changes = 0, false
local ids = {}
for i = 1, #ARGV, 5 do ids[#ids + 1] = ARGV[i] end
if #ids == 0 then return 0 end
local expiries = redis.call('ZMSCORE', KEYS[1], unpack(ids))
local renewed = {}
for n, id in ipairs(ids) do
  local at = 5 * n - 4
  local incarnation, process, sent, load = unpack(ARGV, at + 1, at + 4)
  local hash, voices = KEYS[2 * n + 2], KEYS[2 * n + 3]
  local expires = tonumber(expiries[n] or 0)
  if expires > now then
    local is = redis.call('HMGET', hash, 'status', 'sealed', 'incarnation', 'process', 'ttl_ms', 'load')
    local till = math.min(tonumber(sent), now) + tonumber(is[5] or 0)
    if is[1] == 'active' and is[2] == '1' and is[3] == incarnation and is[4] == process
      and till > expires then
      counted = counted + 1
      renewed[#renewed + 1] = till
      renewed[#renewed + 1] = id
      local how = {'last_seen', sent}
      if load ~= '' and load ~= is[6] then
        how[3], how[4] = 'load', load
        changes = true
      end
      redis.call('HSET', hash, unpack(how))
      -- What was said before this pulse is refuted by it.
      if redis.call('ZREM', KEYS[2], id) == 1 then
        redis.call('DEL', voices)
        changes = true
      end
    end
  end
end
if #renewed > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(renewed)) end
if changes then raise_version(KEYS[3], clock[1] * 1000000 + clock[2]) end
return counted
