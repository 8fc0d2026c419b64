#!lua flags=allow-oom
-- Brings expiries that lie further ahead than a pulse lasts back to where one from now would: no pulse reaches
-- further, so the clock went back since. The same call again changes nothing more.
--
-- KEYS  1 active  2 external ones  3… the hash of each instance of ARGV, in its order
-- ARGV  1… ids
-- Returns how many.
-- Cost  O(ids * log n). Passes when memory is full: nothing grows by it.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local shortened = 0
for at, id in ipairs(ARGV) do
  local is = redis.call('HMGET', KEYS[2 + at], 'ttl_ms', 'lease_ms')
  local ttl = math.max(tonumber(is[1] or 0), tonumber(is[2] or 0))
  local expires = tonumber(redis.call('ZSCORE', KEYS[1], id) or 0)
  if expires > now + ttl then
    redis.call('ZADD', KEYS[1], 'XX', now + ttl, id)
    redis.call('ZADD', KEYS[2], 'XX', now + ttl, id)
    shortened = shortened + 1
  end
end
return shortened
