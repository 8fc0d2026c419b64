-- Shows a part of a delay queue, in the order in which its members become due. Changes nothing.
--
-- A page goes on from a member that was shown whole, and leaves out those that were cut behind it. Where that member
-- has left the queue since, the page begins at its due time: so none is passed over.
--
-- KEYS[1]  the delay queue
-- ARGV[1]  the due time (ms) of the member to go on from; empty for the beginning
-- ARGV[2]  that member; empty for the beginning
-- ARGV[3]  how many behind it to leave out
-- ARGV[4]  members at most
-- ARGV[5]  bytes of a member that are shown at most
-- Returns  for each member: its due time (ms), its bytes, and itself, cut where it is larger
-- Cost     O(members * log n); ends early once it has shown half a MiB
local BYTES = 524288
local KEPT = 1024 -- bytes that are shown of a member that is too large
local most = tonumber(ARGV[5])
local from = 0
local rank = ARGV[2] ~= '' and redis.call('ZRANK', KEYS[1], ARGV[2])
if rank then
  from = rank + 1
elseif ARGV[1] ~= '' then
  from = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[1])
end
from = from + ARGV[3]
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
