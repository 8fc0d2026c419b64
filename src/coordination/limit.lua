#!lua flags=allow-oom
-- Counts one run against a rate (GCRA): decides and stores in one step, on the server's clock.
--
-- KEYS  1 the bucket: a string, the time in µs at which it is full again (TAT). It expires then.
-- ARGV  1 µs per run  2 runs of the largest burst
-- Returns the ms to wait; 0: the run is counted and may go on. A refused one is not counted.
-- Cost  O(1).
--
-- Not idempotent: a call that is repeated after a cut connection may count twice.
-- It must pass when memory is full, or all limits would be gone just then. What it adds is smaller
-- than the event that it counts, which is stored already, and goes away by itself.
local interval = tonumber(ARGV[1])
local burst = interval * tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or now) or now, now)
-- No more can be used up than there is: the clock went back, or the rate was changed.
full = math.min(full, now + burst)
local after = full + interval
local over = after - now - burst
if over > 0 then
  return math.ceil(over / 1000)
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
return 0
