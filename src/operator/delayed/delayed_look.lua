-- Shows a part of a delay queue, in the order in which its members become due. Changes nothing.
--
-- A page follows the member that ended the last one. Where that one has left the queue since, or was too large
-- to be named, the page begins at its due time: so none is passed over.
--
-- KEYS[1]  the delay queue
-- ARGV[1]  the due time (ms) that the last page ended with; empty for the first page
-- ARGV[2]  the member that the last page ended with; empty if it was cut
-- ARGV[3]  how many of that due time to leave out where the member is not there
-- ARGV[4]  members at most
-- ARGV[5]  bytes of a member that are shown at most
-- Returns  for each member: its due time (ms), its bytes, and itself, cut where it is larger
-- Cost     O(members * log n); ends early once it has shown half a MiB
local BYTES = 524288
local KEPT = 1024 -- bytes that are shown of a member that is too large
local most = tonumber(ARGV[5])
local from = 0
if ARGV[1] ~= '' then
  local rank = ARGV[2] ~= '' and redis.call('ZRANK', KEYS[1], ARGV[2])
  if rank then
    from = rank + 1
  else
    from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1]) + ARGV[3]
  end
end
local page, bytes = {}, 0
for at = from, from + ARGV[4] - 1 do
  local found = redis.call('ZRANGE', KEYS[1], at, at, 'WITHSCORES')
  local member = found[1]
  if not member or bytes > BYTES then break end
  local size = #member
  if size > most then member = string.sub(member, 1, KEPT) end
  bytes = bytes + #member
  page[#page + 1] = { found[2], size, member }
end
return page
