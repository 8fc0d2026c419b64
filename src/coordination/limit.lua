#!lua flags=allow-oom
-- Counts one run against a rate: at most this many in any period, by the server's clock. Decides and stores
-- in one step.
--
-- KEYS  1 the bucket: a string, MessagePack: times (µs) and counts of the runs of the last period in turn,
--         the oldest first. Up to 64 runs are kept one by one; more, in up to 65 parts of the period, each
--         by its latest run. It expires a period after its last run.
-- ARGV  1 the period in µs  2 runs in it
-- Returns the ms to wait; 0: the run is counted and may go on. A refused one is not counted, and writes
--   nothing.
-- Cost  O(1): 66 counts at the most.
--
-- Not idempotent: a call that is repeated after a cut connection may count twice.
-- It must pass when memory is full, or all limits would be gone just then. What it adds is smaller
-- than the event that it counts, which is stored already, and goes away by itself.
local PARTS = 64
local period, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local ok, kept = pcall(cmsgpack.unpack, redis.call('GET', KEYS[1]) or '\144')
if not ok or type(kept) ~= 'table' or #kept % 2 ~= 0 or #kept > 4 * PARTS then
  kept = {}
end
local runs, sum = {}, 0
for i = 1, #kept, 2 do
  local at, count = tonumber(kept[i]), tonumber(kept[i + 1])
  if at and count then
    -- The clock may have gone back.
    at = math.min(at, now)
    if at + period > now then
      runs[#runs + 1] = { at, count }
      sum = sum + count
    end
  end
end

if sum >= limit then
  local wait = period
  for _, run in ipairs(runs) do
    sum = sum - run[2]
    wait = run[1] + period - now
    if sum < limit then
      break
    end
  end
  return math.max(math.ceil(wait / 1000), 1)
end

local last = runs[#runs]
local part = period / PARTS
if last and limit > PARTS and math.floor(last[1] / part) == math.floor(now / part) then
  last[1], last[2] = now, last[2] + 1
else
  runs[#runs + 1] = { now, 1 }
end
local flat = {}
for _, run in ipairs(runs) do
  flat[#flat + 1] = run[1]
  flat[#flat + 1] = run[2]
end
redis.call('SET', KEYS[1], cmsgpack.pack(flat), 'PX', math.max(math.ceil(period / 1000), 1))
return 0
