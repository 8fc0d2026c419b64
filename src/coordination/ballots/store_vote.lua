#!lua
-- Stores one vote of a ballot that an arbiter or everyone counts. The first vote opens the ballot and fixes its
-- electorate and its pattern. The same vote again changes nothing.
--
-- KEYS  1 to 11 as in `ballot.lua`  12 the ballots that are not counted to their end, by expiry
--       13 the role set of ARGV[4], if that is not ''
-- ARGV  1 to 11 as in `add_quorum_vote.lua`  12 the pattern, if this opens the ballot
-- Returns {answer, voted, status, votes stored, quorum, electorate, decided value, role, pattern, whether it is to be
--       counted}. answer as in `add_quorum_vote.lua`; 'script': this ballot is counted by that script, nothing was
--       changed.
-- Cost  O(log n) for n active instances; the opening vote as in `add_quorum_vote.lua`. Refused when memory is full.
--
-- A vote is one field of a hash, so it cannot count twice, and it never changes: whoever counts, and however many of
-- the votes there are by then, finds no other decision than somebody else. Votes are stored while the ballot is
-- `voting`, by the server's clock. It is to be counted where its votes may decide it, or its time is over.
local ballot, electorate, votes, state, uncounted = KEYS[1], KEYS[2], KEYS[3], KEYS[11], KEYS[12]
local decision, id, value, role = unpack(ARGV, 1, 4)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

if redis.call('EXISTS', ballot) == 0 then
  if ARGV[12] == 'hybrid' then return {'script', 0, '', 0, 0, 0, false, '', '', 0} end
  local many, refused, asked = redis.call('ZCARD', uncounted) >= tonumber(ARGV[10]), 'many', 0
  if not many then refused, asked = open_ballot(KEYS, KEYS[13], ARGV, 'voting', ARGV[12], now) end
  if refused then return {refused, 0, '', 0, 0, asked, false, '', '', 0} end
  redis.call('ZADD', uncounted, redis.call('HGET', ballot, 'expires_at'), decision)
  redis.call('PEXPIRE', uncounted, ARGV[7])
end

local is = redis.call('HMGET', ballot, 'status', 'role', 'electorate', 'quorum', 'expires_at', 'kept_until',
  'value', 'pattern', 'look_at')
local status, members, quorum = is[1], tonumber(is[3]), tonumber(is[4])
local count = redis.call('HLEN', votes)
local over = tonumber(is[5]) <= now
local function answer(what, voted)
  local due = status == 'voting' and (over or count >= tonumber(is[9]))
  return {what, voted, status, count, quorum, members, is[7], is[2], is[8] or '', due and 1 or 0}
end

if not is[8] or is[8] == 'hybrid' then return answer('script', 0) end
if not redis.call('ZSCORE', electorate, id) then return answer('stranger', 0) end
if role ~= '' and role ~= is[2] then return answer('role', 0) end
local said = redis.call('HGET', votes, id)
if said and said ~= value then return answer('value', 0) end
if said then return answer('state', 1) end
if status ~= 'voting' or over then return answer('state', 0) end

raise_version(state, clock[1] * 1000000 + clock[2])
redis.call('HSET', votes, id, value)
count = count + 1
redis.call('HSET', ballot, 'vote_count', count)
redis.call('HINCRBY', ballot, 'said', #id + #value)
if count == 1 then keep_ballot_until(KEYS, tonumber(is[6])) end
return answer('state', 1)
