"""Word lists of the generated dialogues."""

FIRST_NAMES = '''
Lily Tom Tim Ben Sam Mia Max Anna Sara Jack Lucy Sue Bob Amy Jane Leo Emma Zoe Ella Nora Ruby Rose
Daisy Molly Polly Holly Billy Bobby Freddy Teddy Jimmy Johnny Tommy Timmy Benny Danny Kenny Penny
Jenny Sally Betty Kitty Nina Lola Lulu Mimi Coco Toby Rex Fido Spot Buddy Rocky Charlie Oscar
Felix Hugo Otto Bruno Milo Finn Noah Adam David Peter Paul Mark Luke John James Henry George
Arthur Edward Harry Oliver Alice Clara Ida Iris Eva Ada Maya Mila Nadia Tara Vera Wanda Yara Zara
Omar Ali Amir Hassan Yusuf Fatima Leila Aisha Ravi Arjun Priya Anita Mei Ling Chen Yuki Kenji Hana
Sota Diego Pablo Carlos Maria Elena Lucia Sofia Pedro Ivan Boris Olga Anton Igor Greta Heidi Hans
Fritz Lars Sven Astrid Ingrid Bjorn Pierre Louis Marie Chloe Camille Marco Luca Paolo Bianca
Stella Luna Nova Sky Robin Jay Wren Ash Ivy Willow Hazel Olive Pearl Jade Amber Ginger Pepper
Cookie Biscuit Muffin Waffles Peanut Pickles Marble Pebbles Button Patches Socks Mittens Whiskers
Shadow Smoky Misty Sunny Snowy Stormy Dusty Rusty Sandy Fluffy Fuzzy Bouncy Lucky Happy Jolly
Dolly Bella Nala Simba Zeus Apollo Juno Thor Odin Loki Freya Kira Nico Theo Gus Walter Victor
Simon Martin Dylan Ethan Logan Mason Owen Wyatt Grace Hope Faith
'''.split()
CITIES = '''
Paris London Rome Berlin Madrid Vienna Prague Lisbon Dublin Oslo Cairo Delhi Tokyo Boston Chicago
Dallas Denver Miami Seattle Toronto Sydney Lima Athens Warsaw Geneva Milan Naples Porto Bergen
Zagreb Dakar Nairobi Lagos Tunis Seoul Hanoi Bangkok Manila Austin Portland Quebec Havana Bogota
Quito
'''.split()
COLORS = '''
red blue green yellow orange purple pink brown black white gray gold silver violet crimson
turquoise
'''.split()
FOODS = '''
pizza soup bread cheese rice pasta cake pie apples bananas carrots cookies pancakes noodles fish
eggs honey jam corn beans salad toast butter chocolate
'''.split()
FRUITS = '''
apple banana pear plum cherry grape peach mango melon lemon orange kiwi fig strawberry blueberry
pineapple
'''.split()
ANIMALS = '''
dog cat horse cow pig sheep goat duck hen rabbit fox wolf bear lion tiger elephant monkey zebra
giraffe whale shark dolphin frog turtle snake owl eagle penguin mouse bee
'''.split()
TOYS = '''
ball doll car train truck kite robot puzzle drum boat plane bear yo-yo balloon bike scooter
'''.split()
GAMES = '''
chess tag soccer tennis football hopscotch hide-and-seek cards checkers baseball basketball
marbles golf
'''.split()
SEASONS = 'spring summer autumn winter'.split()
WEEKDAYS = 'Monday Tuesday Wednesday Thursday Friday Saturday Sunday'.split()
MONTHS = '''
January February March April May June July August September October November December
'''.split()
JOBS = '''
doctor teacher pilot baker farmer singer dancer painter writer builder driver sailor nurse chef
king queen firefighter gardener scientist
'''.split()
PETS = '''
dog cat rabbit parrot hamster pony fish turtle mouse goat duck frog bird kitten puppy
'''.split()
RELATIVES = '''
sister brother mom dad teacher friend cousin aunt uncle neighbor grandma grandpa
'''.split()
THINGS = '''
ball key ring coin book hat doll map box spoon shell stone toy letter cup bell star candle crown
button
'''.split()
ADJECTIVES = 'red blue green old big little white black wooden broken'.split()
FURNITURE = '''
box tree bed table chair door house barn bridge rock basket bag sofa lamp wall boat car shelf
fence garden
'''.split()
COMPOSED_STARTS = 'Ma Lo Ti Ra Zu Be Ki No Fe Sa Pi Do Ga Vi Hu Jo'.split()
COMPOSED_MIDDLES = 'lo ra nim to bi ska mel vin dra lu po zy ben ti mo ri'.split()
COMPOSED_NAMES = [
    start + middle + end
    for start in COMPOSED_STARTS
    for middle in COMPOSED_MIDDLES
    for end in ('', 'na', 'ko')
]

# Parts of invented names: (consonants, vowel) once to three times, then an ending.
CONSONANTS = '''
b bl br c ch cl d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl sm sn sp st sw t th
tr v w y z
'''.split()
VOWELS = 'a e i o u a e i o ai ee oo ia ou y'.split()
NAME_ENDINGS = [''] * 4 + 'n r l s x m k t nd rt sh ck lly ss'.split()

PREPOSITIONS = ['in', 'under', 'behind', 'near', 'next to']
MISCELLANY = sorted(
    set(COLORS + FOODS + FRUITS + ANIMALS + TOYS + GAMES + SEASONS + JOBS + THINGS + FURNITURE))
