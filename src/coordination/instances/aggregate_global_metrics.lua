-- Adds what an instance did since its last report to what all instances did, and keeps the report.
-- It is a part of a pulse, which checks who reports: `instances.rs` puts it between the first line and
-- the rest of `heartbeat.lua`. It has functions only.
--
-- last     hash: event type → what the instance last reported of it, 'process' → who counted.
-- totals   hash: event type → what all did. The empty type is all types together.
-- from     where in ARGV the report begins: the process that counts, how long the report is kept (ms),
--          event types in the totals at most, then in turn an event type and what was done.
--          What was done is a MessagePack array: five counters that only rise, and, unless left out,
--          the sum of the times and a map from bucket to count. The caller checked all of it.
-- Cost     O(event types of the report + buckets of those that are not as in the last one).
--          Passes when memory is full: all that it keeps is bounded.
--
-- Counters are sent as they stand, not as differences. So a report that comes twice adds nothing,
-- one that was lost is made up for by the next, and what an instance did is kept when it goes.
-- Another process, or a counter that fell, began at zero.

-- Numbers are exact up to there; a sum that is larger stays there.
local HIGHEST = 2 ^ 53

local function plus(sum, new, old)
  return math.min((sum or 0) + math.max(new - (old or 0), 0), HIGHEST)
end

-- The new sum, and what to keep of the report.
local function add(sum, packed, kept)
  local new, old = cmsgpack.unpack(packed), kept and cmsgpack.unpack(kept) or {}
  sum = sum and cmsgpack.unpack(sum) or {0, 0, 0, 0, 0, 0, {}}
  for i = 1, new[7] and 6 or 5 do
    if new[i] < (old[i] or 0) then
      old = {}
      break
    end
  end
  for i = 1, 5 do sum[i] = plus(sum[i], new[i], old[i]) end
  local time, was = old[6] or 0, old[7] or {}
  if new[7] then
    sum[6] = plus(sum[6], new[6], time)
    local counts = sum[7]
    for bucket, count in pairs(new[7]) do
      local more = count - (was[bucket] or 0)
      if more > 0 then
        more = (counts[bucket] or 0) + more
        counts[bucket] = more < HIGHEST and more or HIGHEST
      end
    end
  else
    new[6], new[7] = time, was
    packed = cmsgpack.pack(new)
  end
  return cmsgpack.pack(sum), packed
end

-- One call for each hash: the server's part of a call costs more than adding a histogram.
local function aggregate(last, totals, from)
  local process, kept_ms, most = ARGV[from], ARGV[from + 1], tonumber(ARGV[from + 2])
  local names = {'process'}
  for i = from + 3, #ARGV, 2 do names[#names + 1] = ARGV[i] end
  local before = redis.call('HMGET', last, unpack(names))
  if before[1] ~= process then
    redis.call('DEL', last)
    before = {}
  end
  local changed, which = {}, {}
  for i = 2, #names do
    if before[i] ~= ARGV[from + 2 * i] then
      changed[#changed + 1] = names[i]
      which[#which + 1] = i
    end
  end
  local keep, write, room = {'process', process}, {}, nil
  local sums = #changed > 0 and redis.call('HMGET', totals, unpack(changed)) or {}
  for at, name in ipairs(changed) do
    local sum, i = sums[at], which[at]
    if not sum and name ~= '' then
      -- One of the fields is that of all types.
      room = (room or most + 1 - redis.call('HLEN', totals)) - 1
    end
    if sum or name == '' or room >= 0 then
      local kept
      sum, kept = add(sum, ARGV[from + 2 * i], before[i])
      local n = #write
      write[n + 1], write[n + 2] = name, sum
      keep[n + 3], keep[n + 4] = name, kept
    end
  end
  if #write > 0 then redis.call('HSET', totals, unpack(write)) end
  redis.call('HSET', last, unpack(keep))
  redis.call('PEXPIRE', last, kept_ms)
end
