-- Trims a stream to about its history, never past what a group has not read and acknowledged.
--
-- A group still needs its lowest pending entry and everything after what it was last given. Where
-- no group needs anything, length alone decides; else the stream is cut at the oldest entry that a
-- group needs or at the candidate, whichever is older. Only whole nodes are removed.
--
-- KEYS: 1 the stream
-- ARGV: 1 entries to keep, 2 candidate: an id below which entries are history (or empty),
--   3 entries to remove at most
-- Returns: removed; of the group that has read most, how many entries it was given and the last one's id
--   (0 and 0-0 where that is not known); or nil if there is no stream. It does not ask XINFO STREAM, which
--   loads the first and the last entry, of any size
-- Cost: O(groups + removed)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end

local function map(flat)
  local named = {}
  for i = 1, #flat, 2 do
    named[flat[i]] = flat[i + 1]
  end
  return named
end

local history = tonumber(ARGV[1])
local idle, bound = true, nil
-- What the group that has read most was given: how many entries, up to which one, how many more there are.
local count, place, more = nil, nil, nil
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
for _, flat in ipairs(groups) do
  local group = map(flat)
  local needed = group['last-delivered-id']
  local read, lag = group['entries-read'], group['lag']
  if read and (not count or read > count) then
    count, place, more = read, needed, lag
  end
  if group['pending'] > 0 then
    idle = false
    local lowest = redis.call('XPENDING', KEYS[1], group['name'], '-', '+', 1)[1][1]
    if before(lowest, needed) then
      needed = lowest
    end
  end
  if not bound or before(needed, bound) then
    bound = needed
  end
end
if idle and bound and redis.call('XLEN', KEYS[1]) > history then
  -- Neither how many a group was given nor its lag can be relied on where an entry was deleted before it was read.
  if #redis.call('XREVRANGE', KEYS[1], '+', '(' .. bound, 'COUNT', 1) > 0 then
    idle = false
  end
end

local removed, candidate = 0, ARGV[2]
if more and more >= history and (candidate == '' or before(candidate, place)) then
  candidate = place
end
if idle then
  removed = redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1], 'LIMIT', ARGV[3])
elseif candidate ~= '' then
  local cut = before(bound, candidate) and bound or candidate
  removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', cut, 'LIMIT', ARGV[3])
end
return { removed, count or 0, place or '0-0' }
