#!lua flags=no-writes
-- Lists tasks and counts them, at one moment.
--
-- KEYS  1 records  2 held  3 queue  4 done  5 counts
-- ARGV  1 a status, or '' for all  2 the most tasks  3 of the finished: begin behind this one, or ''
--       4 the most finished tasks that are looked at
-- Returns {{pending, assigned, completed, failed, cancelled}, {id, record, …}, after}: the assigned, by
--       instance; those that wait, in their order; the finished, the last one first. after: call again
--       with it for more of the finished, which do not move; '' if there are no more. Once about 512 KiB of
--       records was read the list ends.
-- Cost  O(log n + tasks listed + finished ones looked at).
local status, most, after, within = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local BYTES = 524288 -- of records that a call reads, about
local PART = 50      -- records that are read at a time
local listed, bytes = {}, 0

-- Adds those of the members whose records have that in them; a record that somebody deleted is left out.
-- Returns the last member that was looked at.
local function add(members, wanted)
  for i, member in ipairs(members) do members[i] = string.match(member, '([^ *]+)$') end
  local at = 0
  while at < #members and bytes < BYTES do
    local last = math.min(at + PART, #members)
    for _, record in ipairs(redis.call('HMGET', KEYS[1], unpack(members, at + 1, last))) do
      if #listed == 2 * most then return members[at] end
      at = at + 1
      bytes = bytes + #(record or '')
      if record and (not wanted or string.find(record, wanted, 1, true)) then
        listed[#listed + 1] = members[at]
        listed[#listed + 1] = record
      end
    end
  end
  return members[at]
end

local function left()
  return most - #listed / 2
end

local counts = redis.call('HMGET', KEYS[5], 'completed', 'failed', 'cancelled')
local total = { redis.call('ZCARD', KEYS[3]), redis.call('ZCARD', KEYS[2]) }
for i = 1, 3 do total[i + 2] = tonumber(counts[i] or 0) end

if after == '' then
  if (status == '' or status == 'assigned') and left() > 0 then
    add(redis.call('ZRANGE', KEYS[2], 0, left() - 1))
  end
  if (status == '' or status == 'pending') and left() > 0 then
    add(redis.call('ZRANGE', KEYS[3], 0, left() - 1))
  end
end
local finished = status ~= 'assigned' and status ~= 'pending'
local from = 0
if after ~= '' then
  local at = redis.call('ZSCORE', KEYS[4], after)
  -- One that is not there any more was the oldest: so were all behind it.
  if not at then return { total, listed, '' } end
  from = redis.call('ZCOUNT', KEYS[4], '(' .. at, '+inf')
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], at, at, 'BYSCORE', 'REV')) do
    from = from + 1
    if id == after then break end
  end
end
if not finished or left() == 0 or bytes >= BYTES then return { total, listed, '' } end
local page = redis.call('ZRANGE', KEYS[4], from, from + within - 1, 'REV')
-- As it stands in a record. To unpack many takes long; no text that is UTF-8 has these bytes in it.
local pack = cmsgpack.pack
local seen = add(page, status ~= '' and pack('status') .. pack(status))
local more = #page == within or seen ~= page[#page]
return { total, listed, more and left() > 0 and seen or '' }
