-- Strings of a member at most: a token, and twice the fields that an event may have.
local PARTS = 129

-- Whether a member is an array of strings, which is all that an event's has. The server's decoder makes
-- tables of whatever else somebody puts there: for a MiB of numbers it holds the server up for 60 ms.
local function is_event(member)
  local mark, a, b, c, d = string.byte(member, 1, 5)
  local count, at = 0, 2
  if d and mark == 0xdd then count, at = ((a * 256 + b) * 256 + c) * 256 + d, 6
  elseif b and mark == 0xdc then count, at = a * 256 + b, 4
  elseif mark and mark >= 0x90 and mark <= 0x9f then count = mark - 0x90
  end
  if count < 3 or count > PARTS or count % 2 == 0 then return false end
  for _ = 1, count do
    mark, a, b, c, d = string.byte(member, at, at + 4)
    if d and mark == 0xdb then at = at + 5 + ((a * 256 + b) * 256 + c) * 256 + d
    elseif b and mark == 0xda then at = at + 3 + a * 256 + b
    elseif a and mark == 0xd9 then at = at + 2 + a
    elseif mark and mark >= 0xa0 and mark <= 0xbf then at = at + 1 + mark - 0xa0
    else return false
    end
  end
  return at == #member + 1
end
